//! The story of a user or an order: everything that an operator needs who is asked why. What Redis says is so now; what
//! Postgres says is how it came to be, and is left out while Postgres is away.

use std::time::Duration;

use super::*;

/// Of each list of a story.
const MAX_ENTRIES: i64 = 20;
/// Coupons of a user's story, the newest.
const MAX_COUPONS: usize = 100;
/// How long Postgres is waited for.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Engine {
    /// A user's story.
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
            let letters = postgres::queries::timeline::dead_letters_of_user(&self.db, user).await?;
            Ok(UserTrace { entries, open, last, dead_letters: letters })
        };
        Ok(UserTimeline { balance, coupons, coupons_in_all, written: within(written).await? })
    }

    /// An order's story.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::Unavailable`] while Redis is, or Postgres, for one that Redis does not have.
    pub async fn order_timeline(&self, order: OrderId) -> Result<OrderTimeline, Error> {
        let in_redis = self.store.order(order).await?.map(|record| record.order);
        let written = async {
            self.wait_for_projection().await?;
            let trace = postgres::queries::timeline::order(&self.db, order, self.store.partitions()).await?;
            Ok((trace, postgres::queries::timeline::dead_letters_of_order(&self.db, order).await?))
        };
        let written = within(written).await?;
        let status = in_redis.as_ref().map(|order| order.status);
        let order = match in_redis {
            Some(order) => order,
            None => self.order(order, None).await?,
        };
        let (trace, letters) = written.map_or((None, None), |(trace, letters)| (trace, Some(letters)));
        Ok(OrderTimeline { order, in_redis: status, trace, dead_letters: letters })
    }
}

/// What Postgres says, if it says anything in time.
async fn within<T>(asking: impl Future<Output = Result<T, Error>>) -> Result<Option<T>, Error> {
    match tokio::time::timeout(TIMEOUT, asking).await {
        Ok(Ok(said)) => Ok(Some(said)),
        Ok(Err(Error::Unavailable { .. })) | Err(_) => Ok(None),
        Ok(Err(error)) => Err(error),
    }
}
