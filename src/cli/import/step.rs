//! A step of an import: several rows, brought in or previewed.

use std::time::Duration;

use futures_util::{StreamExt, stream};

use super::{reading::CheckedRow, rows::Row};
use crate::{
    engine::{Engine, Preview},
    model::{Call, Error, NewUser, PutOutcome, UserId},
};

/// The products, or campaigns, of a step at once.
const ROWS_AT_ONCE: usize = 32;
/// The pause before a step is repeated while a store is unavailable or far behind, and how often it is.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);
const MAX_RETRIES: u32 = 240;

/// The line and the cells of a row, and what became of it.
pub(super) type RowOutcome = (u64, Vec<String>, Result<PutOutcome, String>);

/// What a step does with its rows.
pub(super) enum ImportStep<'a> {
    /// Brings them in.
    Put(&'a Engine, Call),
    /// Says what would happen.
    Preview(&'a Preview),
}

impl ImportStep<'_> {
    /// # Errors
    /// A store is unavailable for too long.
    pub async fn run(&self, chunk: Vec<CheckedRow>) -> anyhow::Result<Vec<RowOutcome>> {
        let (mut users, mut others, mut done) = (Vec::new(), Vec::new(), Vec::with_capacity(chunk.len()));
        let mut of_users = Vec::new();
        for CheckedRow { line, cells, row } in chunk {
            match row {
                Ok(Row::User(id, new)) => {
                    users.push((id, new));
                    of_users.push((line, cells));
                }
                Ok(other) => others.push((line, cells, other)),
                Err(reason) => done.push((line, cells, Err(reason))),
            }
        }
        let outcomes = with_retries(async || self.put_users(&users).await).await?;
        done.extend(
            std::iter::zip(of_users, outcomes).map(|((line, cells), outcome)| {
                (line, cells, outcome.ok_or_else(|| "the user was forgotten".to_owned()))
            }),
        );
        let others = stream::iter(others).map(async |(line, cells, row)| {
            let outcome = with_retries(async || self.put_one(&row).await).await;
            match outcome {
                Err(error) if error.leaves_outcome_unknown() => Err(error),
                outcome => Ok((line, cells, outcome.map_err(|error| error.to_string()))),
            }
        });
        let mut others = std::pin::pin!(others.buffer_unordered(ROWS_AT_ONCE));
        while let Some(other) = others.next().await {
            done.push(other?);
        }
        done.sort_unstable_by_key(|(line, ..)| *line);
        Ok(done)
    }

    /// What became of each user; `None` of one that was forgotten.
    async fn put_users(&self, users: &[(UserId, NewUser)]) -> Result<Vec<Option<PutOutcome>>, Error> {
        let (engine, call) = match self {
            ImportStep::Preview(preview) => return preview.users(users).await,
            ImportStep::Put(engine, call) => (engine, call),
        };
        engine.admit_write()?;
        let put = engine.put_users(call, users).await?;
        Ok(put.into_iter().map(|put| put.map(|(outcome, _)| outcome)).collect())
    }

    async fn put_one(&self, row: &Row) -> Result<PutOutcome, Error> {
        if let ImportStep::Put(engine, _) = self {
            engine.admit_write()?;
        }
        match (self, row) {
            (_, Row::User(..)) => Err(Error::Internal(anyhow::anyhow!("users are put together"))),
            (ImportStep::Preview(preview), Row::Product(id, new)) => preview.product(*id, new).await,
            (ImportStep::Preview(preview), Row::Campaign(id, new)) => preview.campaign(*id, new).await,
            (ImportStep::Put(engine, call), Row::Product(id, new)) => {
                engine.put_product(call, *id, new.clone()).await.map(|put| put.value.outcome)
            }
            (ImportStep::Put(engine, call), Row::Campaign(id, new)) => {
                engine.put_campaign(call, *id, new.clone()).await.map(|put| put.value.outcome)
            }
        }
    }
}

/// Runs a step, which a repeat finds done, until the stores take it: they may be away for a while, or PostgreSQL far behind.
async fn with_retries<T>(step: impl AsyncFn() -> Result<T, Error>) -> Result<T, Error> {
    let mut retries = 0;
    loop {
        match step().await {
            Err(Error::Unavailable { reason, .. }) if retries < MAX_RETRIES => {
                if retries == 0 {
                    tracing::warn!(reason, "the import waits");
                }
                retries += 1;
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
            done => return done,
        }
    }
}
