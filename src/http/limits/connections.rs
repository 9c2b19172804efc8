//! Limits on connections: how many one client may have.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// Counts the connections of each client; the open connections bound its size.
#[derive(Clone)]
pub struct ConnectionsPerClient {
    open: Arc<Mutex<HashMap<u64, usize>>>,
    max: usize,
}

/// Counts one connection of a client until it is dropped.
pub struct ConnectionPermit {
    open: Arc<Mutex<HashMap<u64, usize>>>,
    client: u64,
}

impl ConnectionsPerClient {
    /// `None` for 0: no limit.
    pub fn new(max: usize) -> Option<Self> {
        (max > 0).then(|| ConnectionsPerClient { open: Arc::default(), max })
    }

    /// A permit for one more connection of this client; `None` if it has too many.
    pub fn acquire(&self, client: u64) -> Option<ConnectionPermit> {
        let mut open = self.open.lock();
        let count = open.entry(client).or_default();
        if *count >= self.max {
            return None;
        }
        *count += 1;
        Some(ConnectionPermit { open: self.open.clone(), client })
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        let mut open = self.open.lock();
        if let Some(count) = open.get_mut(&self.client) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_of_client_bounded() {
        let clients = ConnectionsPerClient::new(2).unwrap();
        let first = clients.acquire(1).unwrap();
        let second = clients.acquire(1).unwrap();
        assert!(clients.acquire(1).is_none());
        let other = clients.acquire(2).unwrap();
        drop(first);
        let third = clients.acquire(1).unwrap();
        drop((second, third, other));
        assert!(clients.open.lock().is_empty(), "who is gone is forgotten");
        assert!(ConnectionsPerClient::new(0).is_none());
    }
}
