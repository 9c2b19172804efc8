//! A type name stands for one thing: no two declarations in `src/` share one, whatever their visibility.

use std::{collections::BTreeMap, fs, path::PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::support::repository::files_below;

/// The names that a stream of tokens declares with `struct`, `enum`, `union`, `trait` or `type`. Associated types do not count:
/// a trait names them.
fn declared(tokens: TokenStream, in_impl: bool, names: &mut Vec<String>) {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let mut body_of_impl = false;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            TokenTree::Group(group) => {
                let braces = group.delimiter() == Delimiter::Brace;
                declared(group.stream(), braces && body_of_impl, names);
                body_of_impl &= !braces;
            }
            TokenTree::Ident(keyword) => {
                let keyword = keyword.to_string();
                body_of_impl |= keyword == "trait" || keyword == "impl" && begins_item(&tokens[..at]);
                let declares = match keyword.as_str() {
                    "struct" | "enum" | "union" | "trait" => true,
                    "type" => !in_impl,
                    _ => false,
                };
                if let Some(TokenTree::Ident(name)) = tokens.get(at + 1).filter(|_| declares) {
                    names.push(name.to_string());
                }
            }
            _ => {}
        }
    }
}

/// Whether an item may begin after these tokens: not the `impl` of a type, as in `-> impl Iterator`.
fn begins_item(before: &[TokenTree]) -> bool {
    match before.last() {
        None => true,
        Some(TokenTree::Group(group)) => group.delimiter() != Delimiter::Parenthesis,
        Some(TokenTree::Punct(punct)) => punct.as_char() == ';',
        Some(TokenTree::Ident(word)) => word == "unsafe",
        Some(TokenTree::Literal(_)) => false,
    }
}

fn names_in(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    declared(text.parse().unwrap(), false, &mut names);
    names
}

#[test]
fn type_names_declared_once() {
    // A file that declares a name twice counts twice.
    let mut files: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files_below("src", ".rs") {
        for name in names_in(&fs::read_to_string(&path).unwrap()) {
            files.entry(name).or_default().push(path.clone());
        }
    }
    assert!(files.len() > 400, "{} names", files.len());
    files.retain(|_, declarations| declarations.len() > 1);
    assert!(files.is_empty(), "type names that stand for two things: {files:#?}");
}

#[test]
fn type_names_found_but_for_associated_types() {
    let text = "
        pub(super) struct A<T>(T);
        impl<T> Iterator for A<T> {
            type Item = T;
            fn next(&mut self) -> Option<T> { type B = u8; struct C; None }
        }
        trait D { type E; }
        mod inner { enum F {} type G = u8; }
        fn all() -> impl Iterator<Item = u8> { type H = u8; [1].into_iter() }
        macro_rules! declare { ($name:ident) => { struct $name; }; }
        unsafe impl Send for A<u8> { type I = u8; }";
    assert_eq!(names_in(text), ["A", "B", "C", "D", "F", "G", "H"]);
}
