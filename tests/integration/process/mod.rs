//! The program as a process: command line, environment, shutdown, instances.

pub mod binary;
mod chart;
mod deployment;
mod drain;
mod environment;
mod import;
pub mod instances;
pub mod secrets;
mod versions;
