//! The deployment files match the program: the settings and roles that they name, the time that they allow for a stop,
//! the inputs of the image.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    process::Command,
};

use crate::support::repository::{files_below, root};

const DOCKERFILE: &str = include_str!("../../../Dockerfile");
const DOCKERIGNORE: &str = include_str!("../../../.dockerignore");
const COMPOSE: &str = include_str!("../../../compose.yaml");
const SCALED: &str = include_str!("../../../compose.scaled.yaml");
const KUBERNETES: &str = include_str!("../../../deploy/kubernetes.yaml");
const HAPROXY: &str = include_str!("../../../deploy/haproxy.cfg");
/// The time that a container has to stop, beyond DRAIN_SECONDS.
const SPARE_SECONDS: u64 = 5;

pub(super) fn help(role: &str) -> String {
    let help = Command::new(env!("CARGO_BIN_EXE_firstcome")).args([role, "--help"]).output().unwrap();
    assert!(help.status.success(), "{role} is not a role");
    String::from_utf8(help.stdout).unwrap()
}

/// The variables of a role with their defaults.
fn settings(role: &str) -> BTreeMap<String, Option<String>> {
    let help = help(role);
    let mut settings = BTreeMap::new();
    for rest in help.split("[env: ").skip(1) {
        let name = rest.split(['=', ']']).next().unwrap();
        let after = rest.split_once(']').unwrap().1.trim_start();
        let default = after.strip_prefix("[default: ").map(|rest| rest.split(']').next().unwrap().to_owned());
        settings.insert(name.to_owned(), default);
    }
    settings
}

/// The lines without comments, each with its indentation.
fn lines(file: &str) -> impl Iterator<Item = (usize, &str)> {
    file.lines().filter(|line| !line.trim_start().starts_with('#') && !line.trim().is_empty()).map(|line| {
        let text = line.trim_start();
        (line.len() - text.len(), text)
    })
}

/// The strings of `["a", "b"]` after this key.
fn words(line: &str, key: &str) -> Option<Vec<String>> {
    let list = line.strip_prefix(key)?.trim().strip_prefix('[')?.strip_suffix(']')?;
    Some(list.split(',').map(|word| word.trim().trim_matches('"').to_owned()).collect())
}

/// A container of ours: role and arguments, variables, and seconds allowed for a stop.
#[derive(Debug, Default)]
struct Container {
    arguments: Vec<String>,
    variables: BTreeMap<String, String>,
    /// The Secret whose keys are variables.
    secret: Option<String>,
    grace_seconds: Option<u64>,
}

/// The services of a compose file that run our image. The file that defines an anchor resolves it.
fn of_compose(file: &str) -> BTreeMap<String, Container> {
    let mut found: BTreeMap<String, (bool, Container)> = BTreeMap::new();
    let (mut service, mut in_environment) = (None, None);
    for (depth, line) in lines(file) {
        match depth {
            0 => service = None,
            2 if line.ends_with(':') => service = Some(line.trim_end_matches(':').to_owned()),
            _ => {}
        }
        if in_environment.is_some_and(|under| depth <= under) {
            in_environment = None;
        }
        let Some(service) = &service else { continue };
        let (ours, container) = found.entry(service.clone()).or_default();
        *ours |= line == "image: firstcome" || line.starts_with("<<: *firstcome") || line == "build: .";
        if let Some(arguments) = words(line, "command:") {
            container.arguments = arguments;
        } else if let Some(grace) = line.strip_prefix("stop_grace_period: ") {
            let seconds = match grace.strip_suffix('m') {
                Some(minutes) => minutes.parse::<u64>().unwrap() * 60,
                None => grace.strip_suffix('s').unwrap().parse().unwrap(),
            };
            container.grace_seconds = Some(seconds);
        } else if line.starts_with("environment:") {
            in_environment = Some(depth);
        } else if in_environment.is_some()
            && let Some((name, value)) = line.split_once(':').filter(|(name, _)| *name != "<<")
        {
            container.variables.insert(name.to_owned(), value.trim().trim_matches('"').to_owned());
        }
    }
    // The override file has only the differences.
    found
        .into_iter()
        .filter(|(name, (ours, _))| *ours || name == "firstcome")
        .map(|(name, (_, it))| (name, it))
        .collect()
}

fn of_kubernetes() -> BTreeMap<String, Container> {
    let mut found = BTreeMap::new();
    for document in KUBERNETES.split("\n---\n") {
        let mut container = Container::default();
        let mut variable = None;
        let mut role = None;
        for (_, line) in lines(document) {
            if let Some(arguments) = words(line, "args:") {
                role = Some(arguments[0].clone());
                container.arguments = arguments;
            } else if let Some(grace) = line.strip_prefix("terminationGracePeriodSeconds: ") {
                container.grace_seconds = Some(grace.parse().unwrap());
            } else if let Some(secret) = line.strip_prefix("- secretRef: { name: ") {
                container.secret = Some(secret.trim_end_matches(" }").to_owned());
            } else if let Some(name) = line.strip_prefix("- name: ") {
                variable =
                    Some(name.to_owned()).filter(|name| name.chars().all(|c| c.is_ascii_uppercase() || c == '_'));
            } else if let (Some(name), Some(value)) = (&variable, line.strip_prefix("value: ")) {
                container.variables.insert(name.clone(), value.trim_matches('"').to_owned());
                variable = None;
            } else if let (Some(name), true) = (&variable, line.starts_with("valueFrom: { secretKeyRef:")) {
                assert!(line.contains(&format!("key: {name} ")), "{line}");
                container.variables.insert(name.clone(), String::new());
                variable = None;
            }
            // A variable needs a value or a secret.
            assert!(
                !(line.starts_with("ports:") || line.starts_with("resources:")) || variable.is_none(),
                "{variable:?}"
            );
        }
        if let Some(role) = role {
            assert!(found.insert(role, container).is_none());
        }
    }
    found
}

fn fits(file: &str, name: &str, container: &Container) {
    let role = &container.arguments[0];
    let settings = settings(role);
    for variable in container.variables.keys() {
        assert!(settings.contains_key(variable), "{file}, {name}: `firstcome {role}` has no {variable}");
    }
    for option in &container.arguments[1..] {
        assert!(help(role).contains(&format!("{option}\n")) || help(role).contains(&format!("{option} ")), "{option}");
    }
    if ["serve", "project"].contains(&role.as_str()) {
        let drain = container.variables.get("DRAIN_SECONDS").or(settings["DRAIN_SECONDS"].as_ref()).unwrap();
        let grace = container.grace_seconds.unwrap_or_else(|| panic!("{file}, {name}: no time for a stop"));
        assert!(grace >= drain.parse::<u64>().unwrap() + SPARE_SECONDS, "{file}, {name}: {grace} s for {drain} s");
    }
}

#[test]
fn compose_files_match_program() {
    let of_all = of_compose(COMPOSE);
    let shared: BTreeSet<&str> = ["REDIS_URL", "DATABASE_URL"].into();
    for name in shared {
        assert!(COMPOSE.split("services:").next().unwrap().contains(&format!("    {name}: ")), "{name}");
        assert!(settings("serve").contains_key(name) && settings("project").contains_key(name));
    }
    assert_eq!(of_all.keys().collect::<Vec<_>>(), ["firstcome", "migrate"]);
    for (name, container) in &of_all {
        fits("compose.yaml", name, container);
    }
    let mut scaled = of_compose(SCALED);
    assert_eq!(scaled.keys().collect::<Vec<_>>(), ["firstcome", "project"]);
    // An override inherits the settings that it does not have.
    scaled.get_mut("firstcome").unwrap().grace_seconds = of_all["firstcome"].grace_seconds;
    for (name, container) in &scaled {
        fits("compose.scaled.yaml", name, container);
    }
    assert_eq!(scaled["firstcome"].arguments, ["serve", "--no-projector"]);
    let check = COMPOSE.lines().filter_map(|line| words(line.trim(), "test:")).find(|words| words[1] == "firstcome");
    let role = check.unwrap()[2].clone();
    assert_eq!(role, "health");
    help(&role);
    // The compose file mounts the balancer's configuration.
    assert!(SCALED.contains("./deploy/haproxy.cfg:") && HAPROXY.contains("uri /readyz "));
}

#[test]
fn kubernetes_manifest_matches_program() {
    let mut containers = of_kubernetes();
    assert_eq!(containers.keys().collect::<Vec<_>>(), ["migrate", "project", "serve"]);
    // Projectors have the instances' settings too, and ignore them.
    let (of_instances, of_projectors) = (settings("serve"), settings("project"));
    let projectors = containers.get_mut("project").unwrap();
    projectors.variables.retain(|name, _| of_projectors.contains_key(name) || !of_instances.contains_key(name));
    for (name, container) in &containers {
        fits("kubernetes.yaml", name, container);
        let has_secret = container.secret.as_deref() == Some("firstcome");
        assert!(has_secret || container.variables.contains_key("DATABASE_URL"), "{name}");
    }
    assert_eq!(containers["serve"].variables["NO_PROJECTOR"], "true");
    let paths: BTreeSet<&str> =
        KUBERNETES.split("path: ").skip(1).map(|rest| rest.split(',').next().unwrap()).collect();
    assert_eq!(paths, ["/healthz", "/readyz"].into());
    // Every container is unprivileged, and is of this version.
    let pods: Vec<&str> = KUBERNETES.split("\n---\n").filter(|document| document.contains("containers:")).collect();
    assert_eq!(pods.len(), containers.len());
    let image = concat!("image: \"firstcome:", env!("CARGO_PKG_VERSION"), "\"");
    for pod in pods {
        for text in [
            "runAsNonRoot: true",
            "readOnlyRootFilesystem: true",
            "allowPrivilegeEscalation: false",
            "drop: [\"ALL\"]",
            "automountServiceAccountToken: false",
            image,
        ] {
            assert_eq!(pod.matches(text).count(), 1, "{text}: {pod}");
        }
    }
}

/// The files and folders outside of src/ that the program is compiled from.
fn read_by_the_build() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for path in files_below("src", ".rs") {
        let text = fs::read_to_string(&path).unwrap();
        for rest in ["include_str!(", "include_bytes!("].iter().flat_map(|include| text.split(include).skip(1)) {
            let file = rest.split('"').nth(1).unwrap();
            let outside = path.parent().unwrap().join(file);
            let outside = outside.components().fold(Vec::new(), |mut parts, part| {
                match part {
                    std::path::Component::ParentDir => drop(parts.pop()),
                    part => parts.push(part.as_os_str().to_string_lossy().into_owned()),
                }
                parts
            });
            found.insert(outside[root().components().count()].clone());
        }
    }
    found
}

#[test]
fn image_context_holds_exactly_the_build_inputs() {
    let mut read = BTreeSet::from(["src".to_owned(), "Cargo.toml".to_owned(), "Cargo.lock".to_owned()]);
    read.extend(read_by_the_build());
    assert!(read.contains("lua") && read.contains("migrations"));
    let mut ignored = DOCKERIGNORE.lines().filter(|line| !line.starts_with('#'));
    assert_eq!(ignored.next(), Some("*"));
    let kept: BTreeSet<String> = ignored.map(|line| line.strip_prefix('!').unwrap().to_owned()).collect();
    assert_eq!(kept, read);
    let build = DOCKERFILE.split("\nFROM ").nth(1).unwrap();
    let copied = build.lines().filter_map(|line| line.strip_prefix("COPY "));
    let copied: BTreeSet<String> = copied
        .flat_map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            words[..words.len() - 1].iter().map(|word| (*word).to_owned()).collect::<Vec<_>>()
        })
        .collect();
    assert_eq!(copied, read);
    // The image runs without root, and its command is a role of the program.
    let last = DOCKERFILE.rsplit("\nFROM ").next().unwrap();
    assert!(last.contains("\nUSER 65532:65532\n") && last.contains("\nENTRYPOINT [\"firstcome\"]\n"));
    let role = last.lines().find_map(|line| words(line, "CMD ")).unwrap();
    let given = last.lines().filter_map(|line| line.strip_prefix("ENV ")?.split('=').next());
    for name in given {
        assert!(settings(&role[0]).contains_key(name), "{name}");
    }
}
