//! Bytes in bulk, each of which is compared with what was sent.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::ensure;
use lb_tests::lab::{Host, Lab};

/// The byte at a place of a stream; a shifted, repeated or lost part shows.
pub fn byte_at(place: u64) -> u8 {
    ((place / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (8 * (place % 8))) as u8
}

/// Reads one connection to its end, compares each byte with what was to come, and answers how many were right.
pub fn sink(host: &Host, port: u16) -> anyhow::Result<JoinHandle<anyhow::Result<()>>> {
    let listener = host.netns.enter(|| TcpListener::bind(("::", port)))?;
    Ok(std::thread::spawn(move || {
        let (mut stream, _) = listener.accept()?;
        let mut buffer = vec![0; 1 << 16];
        let mut right = 0_u64;
        loop {
            let length = stream.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            for byte in &buffer[..length] {
                ensure!(*byte == byte_at(right), "byte {right} is wrong");
                right += 1;
            }
        }
        Ok(stream.write_all(&right.to_be_bytes())?)
    }))
}

/// Sends so many bytes through one connection; gives back how many arrived right.
pub fn send(lab: &Lab, to: SocketAddr, bytes: u64) -> anyhow::Result<u64> {
    let stream = lab
        .client
        .netns
        .enter(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))?;
    send_by(stream, bytes)
}

/// Sends so many bytes through a connection and ends it; gives back how many arrived right.
pub fn send_by(mut stream: TcpStream, bytes: u64) -> anyhow::Result<u64> {
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.set_write_timeout(Some(Duration::from_secs(60)))?;
    let mut buffer = vec![0; 1 << 16];
    let mut sent = 0;
    while sent < bytes {
        let length = (bytes - sent).min(1 << 16) as usize;
        for (byte, at) in buffer.iter_mut().zip(sent..).take(length) {
            *byte = byte_at(at);
        }
        stream.write_all(&buffer[..length])?;
        sent += length as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut answer = [0; 8];
    stream.read_exact(&mut answer)?;
    Ok(u64::from_be_bytes(answer))
}
