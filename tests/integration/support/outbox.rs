//! The outbox of a partition, as Redis has it.

use redis::aio::MultiplexedConnection;

/// An entry: its id, and its fields.
pub type Entry = (String, Vec<(String, String)>);

fn key(partition: u16) -> String {
    format!("{{p{partition}}}:outbox")
}

/// The entries of a partition, oldest first.
pub async fn entries(redis: &mut MultiplexedConnection, partition: u16) -> Vec<Entry> {
    redis::cmd("XRANGE").arg(key(partition)).arg("-").arg("+").query_async(redis).await.unwrap()
}

/// Makes the outbox hold exactly these entries, under their own ids.
pub async fn replace(redis: &mut MultiplexedConnection, partition: u16, entries: &[Entry]) {
    let _: i64 = redis::cmd("DEL").arg(key(partition)).query_async(redis).await.unwrap();
    for (id, fields) in entries {
        let added: String =
            redis::cmd("XADD").arg(key(partition)).arg(id).arg(fields).query_async(redis).await.unwrap();
        assert_eq!(&added, id);
    }
}
