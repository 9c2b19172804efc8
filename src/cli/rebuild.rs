//! `firstcome rebuild`: Redis from PostgreSQL, after a loss.

use std::process::ExitCode;

use clap::Args;

use super::print;
use crate::{
    config::{PostgresConfig, ProjectorConfig, RedisConfig, RetentionConfig},
    model::{Clock, Partition},
    postgres,
    projector::Projector,
    recovery::{
        self,
        rebuild::{LossBounds, Rebuild, Summary},
    },
    redis::Store,
};

#[derive(Args)]
pub(super) struct RebuildArgs {
    #[command(flatten)]
    redis: RedisConfig,
    #[command(flatten)]
    postgres: PostgresConfig,
    #[command(flatten)]
    projector: ProjectorConfig,
    #[command(flatten)]
    retention: RetentionConfig,
    /// The zone of the rankings' days
    #[arg(long, env = "TIME_ZONE", default_value = "Asia/Seoul")]
    time_zone: chrono_tz::Tz,
    /// Rebuild only this partition, while the others sell; may be given several times (default: all)
    #[arg(long = "partition", value_name = "N")]
    partitions: Vec<u16>,
    /// Go on where decisions would be discarded that Redis has and PostgreSQL does not
    #[arg(long)]
    discard: bool,
    /// The most decisions that were lost in each partition, beside discarded ones, if their number is known: keeps less off sale
    #[arg(long, value_parser = clap::value_parser!(i64).range(0..))]
    lost_at_most: Option<i64>,
}

pub(super) async fn run(options: RebuildArgs) -> anyhow::Result<ExitCode> {
    let RebuildArgs { redis, postgres, projector, retention, time_zone, partitions, discard, lost_at_most } = options;
    let (store, db, clock) = (Store::connect(&redis).await?, postgres::connect(&postgres).await?, Clock::system());
    let rebuild = Rebuild {
        projector: Projector::new(
            store.clone(),
            db.clone(),
            clock.clone(),
            &projector,
            postgres.transaction_timeout(),
            retention.retention(),
        ),
        store,
        db,
        clock,
        zone: time_zone,
        retention: retention.retention(),
        durability: redis.redis_durability,
        barrier: None,
        log: Default::default(),
    };
    let options = recovery::rebuild::RebuildOptions {
        partitions: (!partitions.is_empty()).then(|| partitions.into_iter().map(Partition).collect()),
        discard,
        lost_at_most: lost_at_most.map_or(LossBounds::Unknown, LossBounds::Each),
    };
    let Summary {
        partitions,
        epoch,
        rows,
        seconds,
        discarded,
        lost_at_least,
        possible_losses,
        repaired,
        withheld_units,
        withheld_coupons,
    } = rebuild.run(options).await?;
    print(&format!(
        "Redis is rebuilt from PostgreSQL, partitions {partitions:?}: {rows} rows in {seconds:.1} s. Epoch {epoch} has begun.\n\
         Discarded decisions: {discarded}. Lost at least: {lost_at_least}. Steps between partitions finished: {repaired}."
    ))?;
    if possible_losses.is_empty() {
        print("Nothing that anybody was told can be missing: everything is on sale.")?;
        return Ok(ExitCode::SUCCESS);
    }
    print(&format!(
        "Decisions may be lost in partitions {possible_losses:?}: {withheld_units} units and {withheld_coupons} coupons are kept off \
         sale.\nLook at them with GET /admin/v1/withheld, and release them with POST /admin/v1/withheld/release.\n\
         Balances, orders, and coupons in hand are those that PostgreSQL has: see docs/operations.md."
    ))?;
    Ok(ExitCode::SUCCESS)
}
