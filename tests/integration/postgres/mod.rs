//! PostgreSQL: connections, outages, and statements that it refuses.

mod degraded;
mod faults;
mod pooler;
mod tls;
