//! `xlb`: the agent and the command line of a layer-4 load balancer in XDP.
//!
//! Data flows one way: [`config`], verdicts of [`health`] and next hops of [`net`] go into
//! [`control`], a pure function whose result [`datapath`] compares with what the maps hold and writes.

pub mod agent;
pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod datapath;
pub mod demo;
pub mod health;
pub mod lab;
pub mod maglev;
pub mod model;
pub mod net;
pub mod observe;
pub mod rounds;
pub mod state;
