//! The layers of `src/`, held: a module imports only modules to its left, and no circle of imports crosses a folder.
//!
//! Reads every path of every source file that begins with `crate`, `super`, `self` or the name of a child module, in `use`
//! declarations, expressions and macro calls alike. Test code (`#[cfg(test)]`) is left out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    path::{Path, PathBuf},
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::support::repository::{files_below, root};

/// From the bottom to the top. A module imports only what stands to its left; modules beside a `|` do not import each other.
const LAYERS: &str = "sync, model ← config, telemetry, worker ← redis | postgres | gateway | jwt ← archive | oidc ← engine | projector \
                      ← webhooks, recovery, audit ← http ← dashboard ← app | dev ← cli";

/// The documents that print the layers as above.
const PRINTED: &[(&str, &str)] = &[
    ("src/lib.rs", include_str!("../../src/lib.rs")),
    ("docs/architecture.md", include_str!("../../docs/architecture.md")),
];

/// The place of each module: smaller is further to the left; modules beside a `|` share one.
fn places() -> BTreeMap<&'static str, usize> {
    let columns = LAYERS.split(['←', ',']).enumerate();
    columns.flat_map(|(place, names)| names.split('|').map(move |name| (name.trim(), place))).collect()
}

/// A module's path, without `crate`.
type ModulePath = Vec<String>;

/// A name that a module exports for another: `pub use path as name`, or `pub use path::*` where the name is `*`.
struct Reexport {
    name: String,
    path: ModulePath,
}

/// A source file, as a module.
#[derive(Default)]
struct Module {
    file: PathBuf,
    /// Items defined here.
    items: BTreeSet<String>,
    reexports: Vec<Reexport>,
    /// Every path that is named here, absolute.
    paths: BTreeSet<ModulePath>,
    /// Child modules that are test code only.
    test_only: BTreeSet<ModulePath>,
}

fn ident(token: Option<&TokenTree>) -> Option<String> {
    match token {
        Some(TokenTree::Ident(ident)) => Some(ident.to_string()),
        _ => None,
    }
}

fn punct(token: Option<&TokenTree>, c: char) -> bool {
    matches!(token, Some(TokenTree::Punct(punct)) if punct.as_char() == c)
}

/// Whether `::` stands at `at`.
fn colons(tokens: &[TokenTree], at: usize) -> bool {
    punct(tokens.get(at), ':') && punct(tokens.get(at + 1), ':')
}

fn group(token: Option<&TokenTree>, delimiter: Delimiter) -> Option<Vec<TokenTree>> {
    match token {
        Some(TokenTree::Group(group)) if group.delimiter() == delimiter => Some(group.stream().into_iter().collect()),
        _ => None,
    }
}

/// Reads one source file.
struct Reader<'a> {
    module: Module,
    /// The modules of all files.
    known: &'a BTreeSet<ModulePath>,
}

impl Reader<'_> {
    fn read(file: &Path, path: &ModulePath, known: &BTreeSet<ModulePath>) -> Module {
        let text = std::fs::read_to_string(file).unwrap();
        let tokens: TokenStream = text.parse().unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let mut reader = Reader { module: Module { file: file.to_owned(), ..Module::default() }, known };
        reader.items(&tokens.into_iter().collect::<Vec<_>>(), path, true);
        reader.module
    }

    /// Reads the tokens of the module `here`; `outermost`: those of the file, in no braces.
    fn items(&mut self, tokens: &[TokenTree], here: &ModulePath, outermost: bool) {
        let mut at = 0;
        while at < tokens.len() {
            if let Some(after) = self.test_code(tokens, at, here) {
                at = after;
                continue;
            }
            let word = ident(tokens.get(at));
            match word.as_deref() {
                Some("mod") => {
                    let child = ident(tokens.get(at + 1));
                    let body = group(tokens.get(at + 2), Delimiter::Brace);
                    if let (Some(child), Some(body)) = (child, body) {
                        self.items(&body, &[here.as_slice(), &[child]].concat(), false);
                        at += 3;
                        continue;
                    }
                }
                // Not the `use<…>` of a type.
                Some("use") if !punct(tokens.get(at + 1), '<') => {
                    let exported = ident(tokens.get(at.wrapping_sub(1))).is_some_and(|word| word == "pub")
                        || group(tokens.get(at.wrapping_sub(1)), Delimiter::Parenthesis).is_some();
                    let end = (at..tokens.len()).find(|end| punct(tokens.get(*end), ';')).unwrap();
                    for (path, name) in use_tree(&tokens[at + 1..end]) {
                        let Some(path) = self.absolute(&path, here) else { continue };
                        if exported && outermost {
                            self.module.reexports.push(Reexport { name, path });
                        } else {
                            self.module.paths.insert(path);
                        }
                    }
                    at = end + 1;
                    continue;
                }
                Some("struct" | "enum" | "union" | "trait" | "type" | "fn" | "const" | "static") if outermost => {
                    self.module.items.extend(ident(tokens.get(at + 1)));
                }
                Some(_) if colons(tokens, at + 1) && !(at >= 2 && colons(tokens, at - 2)) => {
                    let mut path = vec![word.clone().unwrap()];
                    while colons(tokens, at + 1)
                        && let Some(next) = ident(tokens.get(at + 3))
                    {
                        path.push(next);
                        at += 3;
                    }
                    self.module.paths.extend(self.absolute(&path, here));
                }
                _ => {}
            }
            if let Some(TokenTree::Group(group)) = tokens.get(at) {
                self.items(&group.stream().into_iter().collect::<Vec<_>>(), here, false);
            }
            at += 1;
        }
    }

    /// Where the item under `#[cfg(test)]` at `at` ends, if one begins there.
    fn test_code(&mut self, tokens: &[TokenTree], at: usize, here: &ModulePath) -> Option<usize> {
        let attribute = group(tokens.get(at + 1), Delimiter::Bracket)?;
        let condition: TokenStream = attribute.into_iter().collect();
        if !punct(tokens.get(at), '#') || condition.to_string().replace(' ', "") != "cfg(test)" {
            return None;
        }
        let mut end = at + 2;
        loop {
            let body = group(tokens.get(end), Delimiter::Brace).is_some() && !colons(tokens, end - 2);
            if ident(tokens.get(end)).is_some_and(|word| word == "mod") {
                let child = ident(tokens.get(end + 1)).unwrap();
                self.module.test_only.insert([here.as_slice(), &[child]].concat());
            }
            end += 1;
            if body || punct(tokens.get(end - 1), ';') || end >= tokens.len() {
                return Some(end);
            }
        }
    }

    /// The path from the crate's root; `None` where it leads into another crate, or to something local.
    fn absolute(&self, path: &[String], here: &ModulePath) -> Option<ModulePath> {
        let (mut base, mut rest) = match path.first()?.as_str() {
            "crate" => (Vec::new(), &path[1..]),
            "self" => (here.clone(), &path[1..]),
            "super" => (here.clone(), path),
            child => {
                let is_child = self.known.contains(&[here.as_slice(), &[child.to_owned()]].concat());
                return is_child.then(|| [here.as_slice(), path].concat());
            }
        };
        while rest.first().is_some_and(|first| first == "super") {
            base.pop();
            rest = &rest[1..];
        }
        Some([base.as_slice(), rest].concat())
    }
}

/// The paths of a `use` declaration, each with the name that it brings in.
fn use_tree(tokens: &[TokenTree]) -> Vec<(Vec<String>, String)> {
    let mut path: Vec<String> = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Ident(word) if *word == "as" => {
                let name = ident(tokens.get(at + 1)).unwrap_or_else(|| "_".to_owned());
                return vec![(path, name)];
            }
            TokenTree::Ident(word) => path.push(word.to_string()),
            TokenTree::Punct(star) if star.as_char() == '*' => return vec![(path, "*".to_owned())],
            TokenTree::Group(group) => {
                let inner: Vec<TokenTree> = group.stream().into_iter().collect();
                let parts = inner.split(|token| punct(Some(token), ',')).filter(|part| !part.is_empty());
                let prefixed = |(rest, name): (Vec<String>, String)| match rest.first().map(String::as_str) {
                    Some("self") if !path.is_empty() => {
                        let last = path.last().cloned().unwrap();
                        (path.clone(), if name == "self" { last } else { name })
                    }
                    _ => ([path.as_slice(), &rest].concat(), name),
                };
                return parts.flat_map(use_tree).map(prefixed).collect();
            }
            _ => {}
        }
    }
    let name = path.last().cloned().unwrap_or_default();
    vec![(path, name)]
}

/// Every source file of the library.
struct Sources(BTreeMap<ModulePath, Module>);

impl Sources {
    fn read() -> Self {
        let src = root().join("src");
        let mut files = BTreeMap::new();
        for path in files_below("src", ".rs") {
            let inside = path.strip_prefix(&src).unwrap().with_extension("");
            let mut module: ModulePath = inside.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if module.last().is_some_and(|last| last == "mod") || module == ["lib"] {
                module.pop();
            }
            if module != ["main"] {
                files.insert(module, path);
            }
        }
        let known: BTreeSet<ModulePath> = files.keys().cloned().collect();
        let mut modules: BTreeMap<ModulePath, Module> =
            files.iter().map(|(path, file)| (path.clone(), Reader::read(file, path, &known))).collect();
        let test_only: BTreeSet<ModulePath> = modules.values().flat_map(|module| module.test_only.clone()).collect();
        modules.retain(|path, _| !test_only.iter().any(|only| path.starts_with(only)));
        Sources(modules)
    }

    /// The module that defines what `path` names, through any number of `pub use`.
    fn definition(&self, path: &[String]) -> Option<&ModulePath> {
        let end = (0..=path.len()).rev().find(|end| self.0.contains_key(&path[..*end]))?;
        let (module_path, module) = self.0.get_key_value(&path[..end])?;
        let Some(name) = path.get(end).filter(|name| !module.items.contains(*name)) else { return Some(module_path) };
        let named = module.reexports.iter().find(|export| export.name == *name);
        let through = named.map(|export| [export.path.as_slice(), &path[end + 1..]].concat()).or_else(|| {
            let globs = module.reexports.iter().filter(|export| export.name == "*");
            globs.map(|export| [export.path.as_slice(), &path[end..]].concat()).find(|path| self.defines(path))
        });
        match through {
            Some(path) => self.definition(&path),
            None => Some(module_path),
        }
    }

    /// Whether the module that `path` leads to has an item of that name.
    fn defines(&self, path: &[String]) -> bool {
        let Some((name, module)) = path.split_last() else { return false };
        self.0.get(module).is_some_and(|module| {
            let globs = module.reexports.iter().filter(|export| export.name == "*");
            let mut through = globs.map(|export| [export.path.as_slice(), std::slice::from_ref(name)].concat());
            module.items.contains(name)
                || module.reexports.iter().any(|export| export.name == *name)
                || through.any(|path| self.defines(&path))
        })
    }

    /// Every import of a module by another: who imports, the path as it is named, the module that it leads to.
    fn imports(&self) -> impl Iterator<Item = (&Module, &ModulePath, &Module)> {
        let named = self.0.values().flat_map(|module| module.paths.iter().map(move |path| (module, path)));
        let leading = named.filter_map(|(module, path)| Some((module, path, &self.0[self.definition(path)?])));
        leading.filter(|(from, _, to)| from.file != to.file)
    }
}

fn shown(module: &Module) -> String {
    module.file.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn documents_print_the_layers() {
    for (document, text) in PRINTED {
        assert!(text.contains(LAYERS), "{document} does not print: {LAYERS}");
    }
}

#[test]
fn imports_point_to_lower_layers_only() {
    let (sources, places) = (Sources::read(), places());
    for module in sources.0.keys().filter_map(|path| path.first()).collect::<BTreeSet<_>>() {
        assert!(places.contains_key(module.as_str()), "src/{module} has no place in the table of layers");
    }
    let upward: Vec<String> = sources
        .0
        .iter()
        .filter_map(|(path, module)| Some((path.first()?, module)))
        .flat_map(|(from, module)| {
            let paths = module.paths.iter().chain(module.reexports.iter().map(|export| &export.path));
            let upward = paths.filter(|path| {
                // Macros and items of lib.rs belong to no layer: there are none.
                let to = path.first().unwrap_or_else(|| panic!("{} imports the crate's root", shown(module)));
                from != to && places[to.as_str()] >= places[from.as_str()]
            });
            upward.map(|path| format!("{} imports crate::{}", shown(module), path.join("::"))).collect::<Vec<_>>()
        })
        .collect();
    assert!(upward.is_empty(), "{LAYERS}\n{}", upward.join("\n"));
}

#[test]
fn circles_of_imports_stay_within_a_folder() {
    let sources = Sources::read();
    let mut imports: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (from, _, to) in sources.imports() {
        imports.entry(shown(from)).or_default().insert(shown(to));
    }
    let folder = |file: &str| Path::new(file).parent().unwrap().to_owned();
    // The shortest of each pair of folders tells most.
    let mut circles: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for (from, direct) in &imports {
        for to in direct.iter().filter(|to| folder(to) != folder(from)) {
            let Some(back) = way_back(&imports, to, from) else { continue };
            let circle = circles.entry((folder(from), folder(to))).or_default();
            if circle.is_empty() || back.len() < circle.len() - 1 {
                *circle = [std::slice::from_ref(from), &back].concat();
            }
        }
    }
    let circles: Vec<String> = circles.into_values().map(|circle| circle.join(" → ")).collect();
    assert!(circles.is_empty(), "circles that cross a folder:\n{}", circles.join("\n"));
}

/// The shortest way along the imports, both ends included.
fn way_back(imports: &BTreeMap<String, BTreeSet<String>>, from: &str, to: &str) -> Option<Vec<String>> {
    let mut ways = VecDeque::from([vec![from.to_owned()]]);
    let mut seen = BTreeSet::from([from.to_owned()]);
    while let Some(way) = ways.pop_front() {
        let last = way.last().unwrap();
        if last == to {
            return Some(way);
        }
        for next in imports.get(last).into_iter().flatten() {
            if seen.insert(next.clone()) {
                ways.push_back([way.as_slice(), std::slice::from_ref(next)].concat());
            }
        }
    }
    None
}
