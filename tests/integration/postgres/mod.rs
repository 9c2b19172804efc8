//! PostgreSQL: connections, outages, and statements that it refuses.

mod degraded;
mod failover;
mod faults;
mod pooler;
mod table_names;
mod tls;
