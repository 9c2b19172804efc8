//! One flipped byte in Redis's append-only file: Redis refuses it, or the audit names what is wrong, or no good, order or balance has
//! changed.

use std::{borrow::Cow, collections::BTreeMap, fs};

use firstcome::dev::ScratchDir;

use super::{clients::Market, history::Random, mutations::trade, number, options::Options, shop::Shop};
use crate::support::files::{append_only_log, copy_dir};

/// Keys whose loss or change no promise is about, by the part after the partition: idempotency records in Redis's keys, the words, leases
/// and requests of processes, the outbox, whose entries PostgreSQL has, the sequences of ids, which are audited to be above the ids in use, and counts
/// of which only the changes matter.
const UNAUDITED: [&str; 7] = ["idem:", "instances", "serving", "requests", "outbox", "ids", "freed"];

#[tokio::test]
async fn flipped_byte_of_disk_refused_or_named_by_audit() {
    let seed = number("CHAOS_SEED", 20_260_302);
    let mut random = Random::new(seed);
    // No closed order leaves Redis meanwhile: it would have changed, and rightly.
    let options = Options { partitions: 3, closed_keep_seconds: 86_400, ..Options::default() };
    let mut shop = Shop::open(options, None).await;
    let market = Market::of(&shop, seed);
    for day in 0..2 {
        trade(&shop, &market, day).await;
    }
    shop.caught_up().await;
    assert_eq!(shop.drain().await, Vec::<String>::new());
    assert_eq!(shop.audit().await, Vec::<String>::new());
    let (data, saved) = (shop.redis.data_dir(), ScratchDir::new().unwrap());
    shop.redis.add_args(&["--enable-debug-command", "local"]);
    shop.redis.restart().await.unwrap();
    let whole = digests(&shop).await;
    shop.redis.stop().await.unwrap();
    copy_dir(&data, saved.path());
    let [mut refused, mut named, mut same, mut ignored] = [0; 4];
    for _ in 0..number("CHAOS_FLIPS", 25) {
        fs::remove_dir_all(&data).unwrap();
        copy_dir(saved.path(), &data);
        let flipped = flip(&data, &mut random);
        if shop.redis.restart().await.is_err() {
            refused += 1;
            let _ended = shop.redis.kill().await;
            continue;
        }
        let found = shop.audit().await;
        let now = digests(&shop).await;
        let changed: Vec<&Vec<u8>> =
            (whole.keys().chain(now.keys())).filter(|key| whole.get(*key) != now.get(*key)).collect();
        match (found.is_empty(), changed.is_empty()) {
            (false, _) => named += 1,
            (true, true) => same += 1,
            (true, false) => {
                let changed: Vec<_> = changed.iter().map(|key| String::from_utf8_lossy(key)).collect();
                let unaudited = |key: &Cow<'_, str>| {
                    // A key of no partition is nobody's.
                    let is_ours = (0..shop.options.partitions).any(|here| key.starts_with(&format!("{{p{here}}}:")));
                    !is_ours || UNAUDITED.iter().any(|name| key.contains(&format!("}}:{name}")))
                };
                assert!(changed.iter().all(unaudited), "{flipped}: the audit missed {changed:?}");
                ignored += 1;
            }
        }
        shop.redis.kill().await.unwrap();
    }
    println!(
        "seed {seed}: {refused} refused, {named} named by the audit, {same} without effect, {ignored} in unaudited keys"
    );
    assert!(refused > 0 && named > 0);
}

/// A digest of each key's value. That of a partition's state leaves out the mark of the relay: the audit names one that is ahead, and
/// with one that went back the projector relays again what it has relayed.
async fn digests(shop: &Shop) -> BTreeMap<Vec<u8>, String> {
    let mut redis = shop.raw().await;
    let keys: Vec<Vec<u8>> = redis::cmd("KEYS").arg("*").query_async(&mut redis).await.unwrap();
    let mut digest = redis::cmd("DEBUG");
    let values: Vec<String> = digest.arg("DIGEST-VALUE").arg(&keys).query_async(&mut redis).await.unwrap();
    let mut digests: BTreeMap<Vec<u8>, String> = keys.into_iter().zip(values).collect();
    for (key, digest) in digests.iter_mut().filter(|(key, _)| key.ends_with(b"}:meta")) {
        let state: Option<BTreeMap<Vec<u8>, Vec<u8>>> =
            redis::cmd("HGETALL").arg(key).query_async(&mut redis).await.ok();
        if let Some(mut state) = state {
            state.remove(b"relayed".as_slice());
            *digest = format!("{state:?}");
        }
    }
    digests
}

/// Flips a bit of the commands in the append-only file. Returns its place, and what stands there now.
fn flip(data: &std::path::Path, random: &mut Random) -> String {
    let file = append_only_log(data);
    let mut bytes = fs::read(&file).unwrap();
    let (place, bit) = (random.within(0, bytes.len() as i64 - 1) as usize, random.within(0, 7));
    bytes[place] ^= 1 << bit;
    fs::write(&file, &bytes).unwrap();
    let around = &bytes[place.saturating_sub(80)..(place + 40).min(bytes.len())];
    format!("bit {bit} of byte {place}, in {:?}", String::from_utf8_lossy(around))
}
