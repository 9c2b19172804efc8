//! The rules of `lua/`, checked in the source text: no clock, no random numbers, no key built in Lua; checks above the line,
//! writes below it, and the event as the first write.

use std::{collections::BTreeMap, fs, path::Path};

use firstcome::redis::{reply_code::ReplyCode, script};

/// Commands that only read.
const READS: [&str; 11] =
    ["EXISTS", "GET", "HEXISTS", "HGET", "HMGET", "LRANGE", "SISMEMBER", "SMISMEMBER", "TIME", "XRANGE", "ZSCORE"];
/// The file whose functions pass lists to Redis; every other file names its commands and values.
const LISTS: &str = "lists";
const LINE: &str = "---- checks above, writes below --";

/// The reply codes of each script below the line: its effects. (`RUNNING` is the code of a record.)
const EFFECTS: &[(&str, &[&str])] = &[
    ("balance_charge", &["CHARGED"]),
    ("partition_freeze", &["FROZEN"]),
    ("campaign_create", &["CREATED"]),
    ("campaign_update", &["MOVED"]),
    ("coupon_grant", &["GRANTED"]),
    ("coupon_issue", &["ISSUED"]),
    ("ids_raise", &["RAISED"]),
    ("ids_reserve", &["RESERVED", "ALLOCATED"]),
    ("ids_skip", &["RESERVED"]),
    ("ids_split", &["SPLIT"]),
    ("coupon_release", &["COUPONS_RELEASED"]),
    ("coupon_release_prepare", &["RELEASE_PREPARED"]),
    ("idempotency_claim", &["CLAIMED"]),
    ("idempotency_settle", &["CLAIMED", "SETTLED"]),
    ("limit_group_set", &["GROUP_SET"]),
    ("order_checkout", &["CHECKED_OUT"]),
    ("order_close", &["CLOSED", "DECLINED"]),
    ("order_pay", &["DECLINED", "PAID"]),
    ("order_refund", &["REFUNDED"]),
    ("order_place", &["PLACED"]),
    ("order_restore", &["RESTORED"]),
    ("order_evict", &["EVICTED"]),
    ("outbox_mark", &["MARKED"]),
    ("payment_begin", &["RUNNING", "STARTED"]),
    ("payment_finish", &["FINISHED"]),
    ("payment_postpone", &["POSTPONED"]),
    ("payment_prepare", &["PREPARED"]),
    ("payment_resolve", &["RESOLVED"]),
    ("refund_finish", &["FINISHED"]),
    ("price_set", &["PRICE_SET"]),
    ("product_create", &["CREATED"]),
    ("product_update", &["UPDATED"]),
    ("stock_allot", &["ALLOTTED"]),
    ("stock_receive", &["RECEIVED"]),
    ("stock_regain", &["REGAINED"]),
    ("stock_release", &["UNITS_RELEASED"]),
    ("stock_return", &["RETURNED"]),
    ("user_forget", &["FORGOTTEN"]),
    ("users_create", &["CREATED"]),
    ("users_put", &["UPDATED"]),
];

fn files(dir: &str) -> BTreeMap<String, String> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir);
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            assert_eq!(path.extension().unwrap(), "lua", "{}", path.display());
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            files.insert(name, fs::read_to_string(&path).unwrap());
        }
    }
    files
}

/// The numbers of the keys or arguments in a script's header, from 1, and whether each is a list (`3..`, `1 to n`).
fn described(source: &str, array: &str) -> Vec<(usize, bool)> {
    let header = source.lines().take_while(|line| line.starts_with("#!") || line.starts_with("--"));
    let listing = header.skip_while(|line| !line.starts_with(&format!("-- {array} ")));
    let listing = listing
        .enumerate()
        .take_while(|(n, line)| *n == 0 || (!line.starts_with("-- ARGV") && !line.starts_with("-- Returns")));
    let words: Vec<&str> = listing.flat_map(|(_, line)| line.split_whitespace()).collect();
    // Numbers in the prose are larger than the list's, so the list is what counts up from 1.
    let mut described = Vec::new();
    for (at, word) in words.iter().enumerate() {
        if word.trim_end_matches('.').parse() == Ok(described.len() + 1) {
            let open_ended = word.ends_with("..") || words.get(at + 1) == Some(&"to");
            described.push((described.len() + 1, open_ended));
        }
    }
    described
}

/// The code, without comments.
fn code(source: &str) -> String {
    source.lines().map(|line| line.split("--").next().unwrap()).collect::<Vec<_>>().join("\n")
}

/// Every `redis.call` in order, also of lists in chunks: the command and its key expression.
fn calls(code: &str) -> Vec<(String, String)> {
    let code = code.replace("read_in_chunks('", "redis.call('").replace("write_in_chunks('", "redis.call('");
    let call = |rest: &str| {
        let command = rest.strip_prefix('\'').expect("a command is written out").split('\'').next().unwrap();
        let key = rest[command.len() + 2..].trim_start_matches([',', ' ']);
        let key = key.split([',', ')']).next().unwrap().trim();
        (command.to_owned(), key.to_owned())
    };
    code.split("redis.call(").skip(1).map(call).collect()
}

/// The functions of `lua/lib` that write, and those that refuse, as calls name them.
fn shared() -> (Vec<String>, Vec<String>) {
    let writes = |code: &str| calls(code).iter().any(|(command, _)| !READS.contains(&command.as_str()));
    let (mut writers, mut refusers) = (vec![".write(".to_owned()], Vec::new());
    for (_, source) in files("lua/lib").into_iter().filter(|(name, _)| name != LISTS) {
        for function in code(&source).split("local function ").skip(1) {
            let call = format!("{}(", function.split('(').next().unwrap());
            if call.starts_with("new_") {
                // A table of functions: the last one writes, and no other.
                let (others, write) = function.split_once("write = function").unwrap();
                assert!(!writes(others) && !others.contains("remember("), "{call}) writes outside of `write`");
                assert!(
                    calls(write).iter().all(|(command, _)| !READS.contains(&command.as_str())),
                    "{call}) reads late"
                );
                assert!(replies(write).is_empty(), "{call}) refuses where it writes");
                continue;
            }
            let writes = writes(function);
            let refuses = !replies(function).is_empty();
            assert!(!(writes && refuses), "{call}) both writes and refuses");
            let reads = calls(function).iter().any(|(command, _)| READS.contains(&command.as_str()));
            assert!(!(writes && reads), "{call}) both writes and reads");
            if writes {
                writers.push(call.clone());
            }
            if refuses {
                refusers.push(call);
            }
        }
    }
    (writers, refusers)
}

/// The code above and below the line.
fn halves(name: &str, source: &str) -> (String, String) {
    let parts: Vec<&str> = source.split(LINE).collect();
    assert_eq!(parts.len(), 2, "{name}: one line between checks and writes");
    let (rest, below) = parts[1].split_once('\n').unwrap();
    assert!(rest.bytes().all(|byte| byte == b'-'), "{name}: {rest}");
    (code(parts[0]), code(below))
}

/// The code with every reply as a list, also the texts that scripts for many requests build.
fn as_lists(code: &str) -> String {
    code.replace("reply = '", "{ '").replace("return '", "{ '").replace(" .. SEPARATOR .. ", ", ")
}

/// The reply codes in the code.
fn replies(code: &str) -> Vec<String> {
    let word = |rest: &str| rest.split('\'').next().unwrap().to_owned();
    let lists = as_lists(code);
    let words = lists.split("{ '").skip(1).map(word);
    words.filter(|word| word.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') && word.len() > 1).collect()
}

#[test]
fn script_files_match_registered_scripts() {
    let mut names: Vec<&str> = script::ALL.iter().map(|script| script.name).collect();
    names.sort_unstable();
    assert_eq!(files("lua").keys().collect::<Vec<_>>(), names, "files of lua/, and `scripts!` in src/redis/script.rs");
    for script in script::ALL {
        let source = script.source();
        assert!(source.starts_with("#!lua"), "{}", script.name);
        assert_eq!(source.lines().filter(|line| line.starts_with("#!")).count(), 1, "{}", script.name);
        // Its includes exist.
        for (include, function) in [
            ("lists", "local function write_in_chunks"),
            ("partition", "local function begin_decision"),
            ("idempotency", "local function replay"),
            ("batch", "local function with_record"),
            ("holds", "local function unpack_lines"),
            ("payment", "local function payment_of"),
            ("placing", "local function judge"),
            ("shares", "local function share_of"),
        ] {
            let asks = source.contains(&format!("--@include {include}\n"));
            assert_eq!(asks, source.contains(function), "{} {include}", script.name);
        }
    }
}

/// The names that a file of `lua/lib` declares.
fn included_names(include: &str) -> Vec<String> {
    let source = code(&files("lua/lib")[include]);
    let declared = source.lines().filter_map(|line| line.strip_prefix("local "));
    let names = declared.flat_map(|line| match line.strip_prefix("function ") {
        Some(function) => vec![function.split('(').next().unwrap().to_owned()],
        None => locals(line),
    });
    names.collect()
}

/// The names that a statement `local ...` declares.
fn locals(declaration: &str) -> Vec<String> {
    let names = declaration.split('=').next().unwrap();
    names.split(',').map(|name| name.trim().to_owned()).collect()
}

/// The number of uses of a name in the code, as a whole word.
fn uses(code: &str, name: &str) -> usize {
    let words = code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| *word == name).count()
}

#[test]
fn include_used_by_script_or_by_another_include() {
    for (name, source) in files("lua") {
        let includes: Vec<&str> = source.lines().filter_map(|line| line.strip_prefix("--@include ")).collect();
        for include in &includes {
            let mut others = code(&source);
            for other in includes.iter().filter(|other| *other != include) {
                others.push_str(&code(&files("lua/lib")[*other]));
            }
            let used = included_names(include).iter().any(|name| uses(&others, name) > 0);
            assert!(used, "{name} includes {include} and does not use it");
        }
    }
}

/// An unused key only makes calls longer.
#[test]
fn every_key_and_argument_of_a_header_used() {
    for (name, source) in files("lua") {
        let code = code(&source);
        for array in ["KEYS", "ARGV"] {
            for (number, open_ended) in described(&source, array) {
                let by_number = code.contains(&format!("{array}[{number}]"));
                // A list is used in a loop.
                let in_loop = open_ended && code.split(&format!("{array}[")).skip(1).any(index_of_loop);
                assert!(by_number || in_loop, "{name} does not use {array}[{number}]");
            }
        }
    }
}

fn index_of_loop(rest: &str) -> bool {
    rest.split(']').next().unwrap().split(|c: char| !c.is_ascii_alphanumeric()).any(|word| word == "i")
}

#[test]
fn every_local_of_a_script_used() {
    for (name, source) in files("lua").into_iter().chain(files("lua/lib")) {
        let code = code(&source);
        for line in code.lines().filter_map(|line| line.trim_start().strip_prefix("local ")) {
            if line.starts_with("function ") {
                continue;
            }
            for local in locals(line).into_iter().filter(|local| local != "_" && *local == local.to_lowercase()) {
                assert!(uses(&code, &local) > 1, "{name} does not use {local}");
            }
        }
    }
}

#[test]
fn scripts_start_with_shebang() {
    for (name, source) in files("lua") {
        let makes_room =
            ["order_evict", "outbox_mark"].contains(&name.as_str()) && source.starts_with("#!lua flags=allow-oom\n");
        assert!(makes_room || source.starts_with("#!lua\n") || source.starts_with("#!lua flags=no-writes\n"), "{name}");
    }
}

#[test]
fn scripts_depend_on_keys_and_arguments_only() {
    for (name, source) in files("lua").into_iter().chain(files("lua/lib")) {
        let code = code(&source);
        for banned in [
            "cjson",
            "cmsgpack",
            "struct.",
            "os.",
            "XTRIM",
            "MAXLEN",
            "MINID",
            "random",
            "RANDOM",
            "SPOP",
            "pcall",
            "loadstring",
            "while true",
            "redis.log",
            "redis.setresp",
            "SCAN",
            "'KEYS'",
            "SORT",
            "FLUSH",
        ] {
            assert!(!code.contains(banned), "{name} has {banned}");
        }
        assert!(code.lines().all(|line| !line.starts_with("function ")), "{name} defines a global");
        // The time is the server's, once per call.
        let clocks = code.matches("'TIME'").count() + code.matches("current_time(ARGV[1])").count();
        assert_eq!(code.contains("'TIME'"), name == "partition", "{name}");
        assert!(clocks <= 1, "{name} reads the clock more than once");
    }
}

/// Lua's `unpack` passes about 8,000 values at most: every list goes to Redis in chunks.
#[test]
fn scripts_unpack_no_unbounded_list() {
    let lists = &files("lua/lib")[LISTS];
    for rest in code(lists).split("unpack(").skip(1) {
        let arguments = rest.split(')').next().unwrap();
        let bounded = arguments == "values" || arguments.contains("first + CHUNK - 1");
        assert!(bounded, "unpack({arguments})");
    }
    assert!(lists.contains("if #values <= CHUNK then return redis.call(command, key, unpack(values)) end"));
    let chunk: usize = lists.split("local CHUNK = ").nth(1).unwrap().lines().next().unwrap().parse().unwrap();
    assert!(chunk <= 4_000 && chunk.is_multiple_of(2), "pairs of a chunk stay together");
    for (name, source) in files("lua").into_iter().chain(files("lua/lib")).filter(|(name, _)| name != LISTS) {
        for call in code(&source).split("redis.call(").skip(1) {
            let mut depth = 1;
            let end = call.bytes().position(|byte| {
                depth += i32::from(byte == b'(') - i32::from(byte == b')');
                depth == 0
            });
            let call = &call[..end.unwrap()];
            assert!(!call.contains("unpack("), "{name}: redis.call({call})");
        }
    }
}

#[test]
fn scripts_build_no_keys() {
    for (name, source) in files("lua").into_iter().chain(files("lua/lib")).filter(|(name, _)| name != LISTS) {
        for (command, key) in calls(&code(&source)).into_iter().filter(|(command, _)| command != "TIME") {
            // A variable or a field of one, no expression that builds a key.
            let named = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.[]".contains(&byte));
            assert!(named && !key.is_empty() && !key.contains(".."), "{name}: {command} on {key}");
        }
        // No line builds the name of a key.
        for line in code(&source).lines().filter(|line| line.contains("local") && line.contains("KEYS[")) {
            assert!(!line.contains(".."), "{name}: {line}");
        }
    }
}

#[test]
fn script_headers_complete() {
    for (name, source) in files("lua") {
        let header: Vec<&str> =
            source.lines().take_while(|line| line.starts_with("#!") || line.starts_with("--")).collect();
        let says = |start: &str| header.iter().find(|line| line.starts_with(start));
        assert!(header[1].starts_with("-- ") && header[1].len() > 20, "{name} does not say what it is for");
        for part in ["-- KEYS 1 ", "-- ARGV 1 ", "-- Returns "] {
            assert!(says(part).is_some(), "{name} has no {part:?}");
        }
        // KEYS and ARGV are used by the numbers that the header has, and no others.
        let code = code(&source);
        for array in ["KEYS", "ARGV"] {
            let numbered = |text: &str| -> Option<usize> {
                let used = text.split(array).filter_map(|rest| rest.strip_prefix('['));
                used.filter_map(|rest| rest.split(']').next()?.parse::<usize>().ok()).max()
            };
            let described = described(&source, array).last().map(|(number, _)| *number);
            assert!(described >= numbered(&code), "{name}: {array} to {described:?}, used to {:?}", numbered(&code));
        }
        let emits = calls(&code).iter().any(|(command, _)| command == "XADD") || code.contains("emit(outbox, ");
        let packed = code.split("with_record(").skip(1).map(|rest| {
            let event = rest.trim_start();
            event.strip_prefix("table.concat({ ").unwrap_or(event).trim_start_matches('\'')
        });
        let kinds: std::collections::BTreeSet<&str> =
            code.split("'kind', '").skip(1).chain(packed).map(|rest| rest.split('\'').next().unwrap()).collect();
        assert_eq!(emits, !kinds.is_empty(), "{name}");
        match says("-- Emits ") {
            Some(line) => {
                for kind in &kinds {
                    assert!(line.contains(kind), "{name} does not say that it emits {kind}");
                }
                assert!(!kinds.is_empty(), "{name} emits nothing");
            }
            None => assert!(kinds.is_empty(), "{name} does not say that it emits {kinds:?}"),
        }
    }
}

#[test]
fn scripts_check_before_writes() {
    let effects: BTreeMap<&str, &[&str]> = EFFECTS.iter().copied().collect();
    let (writers, refusers) = shared();
    for (some, of) in [("rank(", &writers), ("remember(", &writers), ("replay(", &refusers)] {
        assert!(of.iter().any(|call| call == some), "{of:?}");
    }
    for (name, source) in files("lua") {
        if source.starts_with("#!lua flags=no-writes\n") {
            assert!(!source.contains(LINE), "{name} has nothing to write");
            for (command, _) in calls(&code(&source)) {
                assert!(READS.contains(&command.as_str()), "{name} reads by {command}");
            }
            continue;
        }
        let (above, below) = halves(&name, &source);
        for (command, key) in calls(&above) {
            assert!(READS.contains(&command.as_str()), "{name} writes {key} by {command} above the line");
        }
        for writer in &writers {
            assert!(!above.contains(writer.as_str()), "{name} calls {writer}) above the line");
        }
        let effects = effects.get(name.as_str()).unwrap_or_else(|| panic!("EFFECTS in this file lacks {name}"));
        // A read below the line could fail after a write.
        for (command, key) in calls(&below) {
            assert!(!READS.contains(&command.as_str()), "{name} reads {key} by {command} below the line");
        }
        for word in replies(&below) {
            assert!(effects.contains(&word.as_str()), "{name} answers {word} below the line");
        }
        for refusal in refusers.iter().map(String::as_str).chain(["error(", "error_reply", "assert("]) {
            assert!(!below.contains(refusal), "{name} refuses by {refusal}) below the line");
        }
        if source.contains("-- Emits ") {
            // The event is the first of the writes, in whatever branch.
            let below = below.replace("emit(outbox, ", "redis.call('XADD', outbox, ");
            let (command, key) = calls(&below).into_iter().next().unwrap();
            assert_eq!((command.as_str(), key.as_str()), ("XADD", "outbox"), "{name}: the first write");
            let first = below.find("redis.call(").unwrap();
            for writer in &writers {
                assert!(
                    below.find(writer.as_str()).is_none_or(|at| at > first),
                    "{name} calls {writer}) before the event"
                );
            }
            // The next write advances the position.
            let sequence: Vec<_> = calls(&below);
            for (at, _) in sequence.iter().enumerate().filter(|(_, (command, _))| command == "XADD") {
                assert_eq!(sequence[at + 1], ("HSET".to_owned(), "meta".to_owned()), "{name}: after the event");
            }
        } else {
            assert!(!code(&source).contains("XADD"), "{name}");
        }
        // A trim, and what precedes it, is no decision: it runs in a closed partition too.
        let follows = ["order_evict", "outbox_mark"].contains(&name.as_str());
        assert!(follows || code(&source).contains("begin_decision(meta)"), "{name} decides in a closed partition");
    }
}

/// `ScriptReply` reads epoch and seq after these codes, and after no others.
#[test]
fn scripts_reply_codes_with_position_known() {
    let mut said = std::collections::BTreeSet::new();
    for source in files("lua").into_values() {
        for rest in as_lists(&code(&source)).split("{ '").skip(1) {
            if let Some((word, rest)) = rest.split_once("', ")
                && ["epoch, seq", "epoch, number", "epoch, whole(seq)"].iter().any(|number| rest.starts_with(number))
            {
                said.insert(word.to_owned());
            }
        }
    }
    let decisions = ReplyCode::ALL.iter().filter(|code| code.is_decision()).map(|code| code.as_str().to_owned());
    assert_eq!(said, decisions.collect(), "codes before epoch and seq, and `decisions` in src/redis/reply_code.rs");
}
