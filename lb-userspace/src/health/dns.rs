//! The `dns` check: a name server answers a question as expected. Over UDP; an answer that was cut short says what
//! its response code says.
//!
//! Datagrams that are no answer to the question (another number, another question) are passed over, a bounded number
//! of them: anybody who can send from the server's address may have sent them.

use std::net::IpAddr;

use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};

use super::probe::{Limit, Outcome, Probe};
use super::udp::{self, Exchange};
use super::way::Way;
use crate::config::{DnsCheck, QueryType, Rcode};
use crate::model::CheckCode;

/// How many datagrams that are no answer are passed over.
const MAX_FOREIGN: usize = 16;

pub(super) async fn check(check: &DnsCheck, way: Way<'_>, probe: &Probe, limit: Limit) -> Outcome {
    let Some((question, datagram)) = question(check) else {
        return Outcome::new(CheckCode::Sockerr, "the question cannot be written down");
    };
    let mut socket = match udp::sent(&datagram, way, probe).await {
        Ok(socket) => socket,
        Err(outcome) => return outcome,
    };
    match limit
        .run(answer(&mut socket, &question), CheckCode::L7tout, "no answer")
        .await
    {
        Ok(Ok(answer)) => judge(check, &answer),
        Ok(Err(failed)) => failed,
        Err(late) => late,
    }
}

fn question(check: &DnsCheck) -> Option<(Message, Vec<u8>)> {
    let mut name = Name::from_ascii(&check.query).ok()?;
    name.set_fqdn(true);
    let mut message = Message::new();
    message
        .set_id(rand::random())
        .set_recursion_desired(true)
        .add_query(Query::query(name, record_type(check.query_type)));
    let datagram = message.to_vec().ok()?;
    Some((message, datagram))
}

async fn answer(socket: &mut Exchange, question: &Message) -> Result<Message, Outcome> {
    let mut buffer = [0; udp::MAX_ANSWER_BYTES];
    let mut garbage = "of another question";
    for _ in 0..MAX_FOREIGN {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(answer) if answers(&answer, question) => return Ok(answer),
            Ok(_) => {}
            // What begins with the number of the question is meant as its answer.
            Err(_) if buffer[..length].starts_with(&question.id().to_be_bytes()) => {
                return Err(Outcome::new(CheckCode::L7rsp, "the answer is no DNS message"));
            }
            Err(_) => garbage = "that are no DNS message",
        }
    }
    Err(Outcome::new(
        CheckCode::L7rsp,
        format!("{MAX_FOREIGN} datagrams {garbage}"),
    ))
}

/// Whether it is an answer to `question` (RFC 5452, section 9.1). A server that did not understand the question may
/// leave it out.
fn answers(answer: &Message, question: &Message) -> bool {
    let same_question = match answer.queries() {
        [] => answer.response_code() != ResponseCode::NoError,
        queries => queries == question.queries(),
    };
    answer.message_type() == MessageType::Response && answer.id() == question.id() && same_question
}

fn judge(check: &DnsCheck, answer: &Message) -> Outcome {
    let code = answer.response_code();
    if !check
        .expect_rcode
        .iter()
        .any(|&expected| response_code(expected) == code)
    {
        return Outcome::new(CheckCode::L7sts, describe(code));
    }
    if check.expect_address.is_empty() {
        return Outcome::new(CheckCode::L7ok, describe(code));
    }
    let addresses = answer
        .answers()
        .iter()
        .filter_map(|record| record.data().ip_addr());
    let found: Option<IpAddr> = addresses
        .into_iter()
        .find(|address| check.expect_address.contains(address));
    match found {
        Some(address) => Outcome::new(CheckCode::L7ok, format!("{}, {address}", describe(code))),
        None => Outcome::new(
            CheckCode::L7rsp,
            format!("{}, without an expected address", describe(code)),
        ),
    }
}

fn describe(code: ResponseCode) -> String {
    match code {
        ResponseCode::NoError => "NOERROR".to_owned(),
        ResponseCode::FormErr => "FORMERR".to_owned(),
        ResponseCode::ServFail => "SERVFAIL".to_owned(),
        ResponseCode::NXDomain => "NXDOMAIN".to_owned(),
        ResponseCode::NotImp => "NOTIMP".to_owned(),
        ResponseCode::Refused => "REFUSED".to_owned(),
        other => format!("response code {}", u16::from(other)),
    }
}

fn response_code(rcode: Rcode) -> ResponseCode {
    match rcode {
        Rcode::NoError => ResponseCode::NoError,
        Rcode::FormErr => ResponseCode::FormErr,
        Rcode::ServFail => ResponseCode::ServFail,
        Rcode::NxDomain => ResponseCode::NXDomain,
        Rcode::NotImp => ResponseCode::NotImp,
        Rcode::Refused => ResponseCode::Refused,
    }
}

fn record_type(query_type: QueryType) -> RecordType {
    match query_type {
        QueryType::A => RecordType::A,
        QueryType::Aaaa => RecordType::AAAA,
        QueryType::Cname => RecordType::CNAME,
        QueryType::Mx => RecordType::MX,
        QueryType::Ns => RecordType::NS,
        QueryType::Ptr => RecordType::PTR,
        QueryType::Soa => RecordType::SOA,
        QueryType::Srv => RecordType::SRV,
        QueryType::Txt => RecordType::TXT,
    }
}

#[cfg(test)]
#[path = "tests/dns.rs"]
mod tests;
