//! The groups of products that share a limit per user.

use crate::{
    audit::{
        Audit,
        fields::{differ, number},
    },
    postgres::snapshot::Snapshot,
};

impl Audit {
    /// Compares the limits of the groups that products have. Redis also keeps those that no product has any more. Returns the number
    /// of groups and the discrepancies.
    pub(in crate::audit) async fn limit_groups(&self) -> anyhow::Result<(i64, Vec<String>)> {
        // PostgreSQL first: a group has its limit in Redis before a product is in it.
        let mut snapshot = Snapshot::begin(&self.db).await?;
        let groups = snapshot.limit_groups_of_products().await?;
        snapshot.end().await?;
        let seen = self.store.inspect_limit_groups().await?;
        let mut wrong: Vec<String> = seen
            .iter()
            .filter(|(_, limit)| number(limit).is_none_or(|limit| limit < 1))
            .map(|(group, limit)| format!("group {group}: {limit:?} is no limit"))
            .collect();
        for (group, limit) in &groups {
            let in_redis = seen.get(group).map_or("", String::as_str);
            wrong.extend(differ(&format!("group {group}: the limit per user"), in_redis, limit));
        }
        Ok((groups.len() as i64, wrong))
    }
}
