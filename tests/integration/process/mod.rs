//! The program as a process: command line, environment, shutdown, instances.

pub mod binary;
mod deployment;
mod drain;
mod environment;
mod instances;
pub mod secrets;
