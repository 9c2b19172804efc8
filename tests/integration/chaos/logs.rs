//! The logs of a run's processes.

use std::{
    fs,
    io::{Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use firstcome::dev::RedisServer;
use serde_json::Value;

use super::shop::{Service, Shop};

impl Shop {
    /// The logs of the services, and those of the servers of Redis.
    pub fn whole_logs(&self) -> (String, String) {
        let paths = self.log_paths();
        let (services, servers) = paths.split_at(self.services.len());
        let text = |paths: &[PathBuf]| paths.iter().map(|path| tail(path, 0)).collect();
        (text(services), text(servers))
    }

    /// The log of each service, and then those of the servers of Redis.
    pub fn log_paths(&self) -> Vec<PathBuf> {
        let services = self.services.iter().map(|service| service.log.clone());
        let servers = [Some(&self.redis), self.replica.as_ref()].into_iter().flatten().map(RedisServer::log_path);
        services.chain(servers).collect()
    }

    /// The errors and the last lines of the services' logs, for the report of a failure.
    pub fn logs(&self) -> String {
        let excerpt = |service: &Service| {
            let log = tail(&service.log, 0);
            let (errors, rest): (Vec<&str>, Vec<&str>) =
                log.lines().filter(|line| !line.contains("\"INFO\"")).partition(|line| line.contains("\"ERROR\""));
            let last = &rest[rest.len().saturating_sub(15)..];
            [&errors[..errors.len().min(15)], last].concat().join("\n")
        };
        self.services.iter().map(excerpt).collect::<Vec<_>>().join("\n--\n")
    }
}

/// A log after this offset.
pub fn tail(log: &Path, from: u64) -> String {
    let mut text = Vec::new();
    if let Ok(mut file) = fs::File::open(log) {
        file.seek(SeekFrom::Start(from)).unwrap();
        file.read_to_end(&mut text).unwrap();
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The address that a service serves, from its log after this offset.
pub fn serving(log: &Path, from: u64) -> Option<String> {
    let text = tail(log, from);
    let line = text.lines().find(|line| line.contains("\"message\":\"serving\"") && line.ends_with('}'))?;
    let line: Value = serde_json::from_str(line).ok()?;
    Some(line["fields"]["address"].as_str()?.to_owned())
}
