//! Packets through the loaded programs (`BPF_PROG_TEST_RUN`), and the programs on interfaces and in pins.
//! Root only. What comes out is read by `etherparse`, never by our own code.

mod access;
mod announce;
mod balance;
mod budget;
mod build;
mod crash;
mod decap;
mod explain;
mod flow_bench;
mod flows;
mod forward;
mod fragments;
mod fuzz;
mod history;
mod icmp;
mod jumbo;
mod limits;
mod load;
mod malformed;
mod model;
mod mss;
mod nat;
mod out;
mod parser;
mod pass;
mod pins;
mod quic;
mod ranges;
mod refuse;
mod schedulers;
mod simulate;
mod suspects;
mod toobig;
mod vlan;
mod world;
