//! The timeline of a user or an order, for operators. Redis has the current state; PostgreSQL has the history, which is
//! omitted while PostgreSQL is unavailable.

use std::time::Duration;

use super::*;

/// The maximum length of each list of a timeline.
const MAX_ENTRIES: i64 = 20;
/// The maximum number of coupons in a user's timeline, the newest first.
const MAX_COUPONS: usize = 100;
/// The time limit of the reads from PostgreSQL.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Engine {
    /// A user's timeline.
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::Unavailable`] while Redis is.
    pub async fn user_timeline(&self, user: UserId) -> Result<UserTimeline, Error> {
        let balance = self.balance(user).await?;
        let mut coupons = self.user_coupons(user).await?;
        let coupons_in_all = coupons.len() as i64;
        coupons.reverse();
        coupons.truncate(MAX_COUPONS);
        let orders = |status| OrderFilter { status, user_id: Some(user), page: 0, size: MAX_ENTRIES };
        let written = async {
            self.wait_for_projection().await?;
            let entries = self.history(user, MAX_ENTRIES, None).await?;
            let open = postgres::queries::resources::orders(&self.db, &orders(Some(OrderStatus::Pending))).await?;
            let last = postgres::queries::resources::orders(&self.db, &orders(None)).await?;
            let dead_letters = postgres::queries::timeline::dead_letters_of_user(&self.db, user).await?;
            Ok(UserTrace { entries, open, last, dead_letters })
        };
        Ok(UserTimeline { balance, coupons, coupons_in_all, written: within_limit(written).await? })
    }

    /// An order's timeline.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::Unavailable`] while Redis is, or if Redis does not have the order while PostgreSQL is
    /// unavailable.
    pub async fn order_timeline(&self, order: OrderId) -> Result<OrderTimeline, Error> {
        let in_redis = self.store.order(order).await?.map(|record| record.order);
        let written = async {
            self.wait_for_projection().await?;
            let trace = postgres::queries::timeline::order(&self.db, order).await?;
            Ok((trace, postgres::queries::timeline::dead_letters_of_order(&self.db, order).await?))
        };
        let written = within_limit(written).await?;
        let status = in_redis.as_ref().map(|order| order.status);
        let order = match in_redis {
            Some(order) => order,
            None => self.order(order, None).await?,
        };
        let (trace, dead_letters) = written.map_or((None, None), |(trace, dead_letters)| (trace, Some(dead_letters)));
        Ok(OrderTimeline { order, in_redis: status, trace, dead_letters })
    }
}

/// Runs a read from PostgreSQL within the time limit. `None` if PostgreSQL is unavailable or too slow.
async fn within_limit<T>(read: impl Future<Output = Result<T, Error>>) -> Result<Option<T>, Error> {
    match tokio::time::timeout(TIMEOUT, read).await {
        Ok(Ok(value)) => Ok(Some(value)),
        Ok(Err(Error::Unavailable { .. })) | Err(_) => Ok(None),
        Ok(Err(error)) => Err(error),
    }
}
