//! The story of a user or an order: everything that an operator needs who is asked why. What Redis says is so now; what
//! Postgres says is how it came to be, and is left out while Postgres is away.

use std::time::Duration;

use super::*;

/// Of each list of a story.
const MOST: i64 = 20;
/// Coupons of a user's story, the newest.
const MOST_COUPONS: usize = 100;
/// How long Postgres is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

impl Engine {
    /// A user's story.
    ///
    /// # Errors
    /// [`Error::UserNotFound`]; [`Error::Unavailable`] while Redis is.
    pub async fn user_story(&self, user: UserId) -> Result<UserStory, Error> {
        let balance = self.balance(user).await?;
        let mut coupons = self.user_coupons(user).await?;
        let coupons_in_all = coupons.len() as i64;
        coupons.reverse();
        coupons.truncate(MOST_COUPONS);
        let orders = |status| OrderFilter { status, user_id: Some(user), page: 0, size: MOST };
        let written = async {
            self.projected().await?;
            let entries = self.history(user, MOST, None).await?;
            let open = postgres::queries::resources::orders(&self.db, &orders(Some(OrderStatus::Pending))).await?;
            let last = postgres::queries::resources::orders(&self.db, &orders(None)).await?;
            let letters = postgres::queries::timeline::letters_of_user(&self.db, user).await?;
            Ok(UserTrace { entries, open, last, letters })
        };
        Ok(UserStory { balance, coupons, coupons_in_all, written: within(written).await? })
    }

    /// An order's story.
    ///
    /// # Errors
    /// [`Error::OrderNotFound`]; [`Error::Unavailable`] while Redis is, or Postgres, for one that Redis does not have.
    pub async fn order_story(&self, order: OrderId) -> Result<OrderStory, Error> {
        let in_redis = self.store.order(order).await?.map(|record| record.order);
        let written = async {
            self.projected().await?;
            let trace = postgres::queries::timeline::order(&self.db, order, self.store.partitions()).await?;
            Ok((trace, postgres::queries::timeline::letters_of_order(&self.db, order).await?))
        };
        let written = within(written).await?;
        let status = in_redis.as_ref().map(|order| order.status);
        let order = match in_redis {
            Some(order) => order,
            None => self.order(order, None).await?,
        };
        let (trace, letters) = written.map_or((None, None), |(trace, letters)| (trace, Some(letters)));
        Ok(OrderStory { order, in_redis: status, trace, letters })
    }
}

/// What Postgres says, if it says anything in time.
async fn within<T>(asking: impl Future<Output = Result<T, Error>>) -> Result<Option<T>, Error> {
    match tokio::time::timeout(PATIENCE, asking).await {
        Ok(Ok(said)) => Ok(Some(said)),
        Ok(Err(Error::Unavailable { .. })) | Err(_) => Ok(None),
        Ok(Err(error)) => Err(error),
    }
}
