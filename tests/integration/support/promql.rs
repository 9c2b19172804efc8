//! A parser of the part of PromQL that the dashboard and the alerts use: it checks the grammar and the types of an expression,
//! and lists the metrics and labels that it names.

use std::collections::BTreeSet;

/// The names in an expression.
#[derive(Debug, Default)]
pub struct Names {
    /// Each selector: its metric, and the labels that it matches.
    pub selectors: Vec<(String, BTreeSet<String>)>,
    /// Labels that series are grouped or matched by.
    pub grouped: BTreeSet<String>,
}

/// The type of an expression.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Scalar,
    Vector,
    Range,
    Text,
}
use Kind::{Range, Scalar, Text, Vector};

const AGGREGATIONS: &[&str] = &["avg", "bottomk", "count", "max", "min", "quantile", "sum", "topk"];

/// Functions: the types of their arguments and of their result.
const FUNCTIONS: &[(&str, &[Kind], Kind)] = &[
    ("absent", &[Vector], Vector),
    ("ceil", &[Vector], Vector),
    ("changes", &[Range], Vector),
    ("clamp_max", &[Vector, Scalar], Vector),
    ("clamp_min", &[Vector, Scalar], Vector),
    ("delta", &[Range], Vector),
    ("deriv", &[Range], Vector),
    ("histogram_quantile", &[Scalar, Vector], Vector),
    ("increase", &[Range], Vector),
    ("label_replace", &[Vector, Text, Text, Text, Text], Vector),
    ("max_over_time", &[Range], Vector),
    ("min_over_time", &[Range], Vector),
    ("rate", &[Range], Vector),
    ("time", &[], Scalar),
    ("vector", &[Scalar], Vector),
];

/// Operators, loosest first.
const OPERATORS: &[&[&str]] =
    &[&["or"], &["and", "unless"], &["==", "!=", "<=", ">=", "<", ">"], &["+", "-"], &["*", "/", "%"]];

/// The names in an expression, which must be a vector or a scalar.
///
/// # Errors
/// The place and the reason where the expression is malformed.
pub fn parse(text: &str) -> Result<Names, String> {
    let mut parser = Parser { tokens: tokens(text)?, at: 0, names: Names::default() };
    let kind = parser.expression(0)?;
    if let Some(rest) = parser.tokens.get(parser.at) {
        return Err(format!("{rest:?} is left over"));
    }
    if !matches!(kind, Scalar | Vector) {
        return Err(format!("the expression is a {kind:?}"));
    }
    Ok(parser.names)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    Name(String),
    Number(f64),
    Duration,
    Text,
    Sign(&'static str),
}

const SIGNS: &[&str] =
    &["=~", "!~", "==", "!=", "<=", ">=", "<", ">", "=", "+", "-", "*", "/", "%", "(", ")", "{", "}", "[", "]", ","];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if first.is_ascii_digit() {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(rest.len());
            let word = &rest[..end];
            let (digits, unit) = word.split_at(word.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(end));
            let number = digits.parse().map_err(|_| format!("{word} is no number"))?;
            match unit {
                "" => tokens.push(Token::Number(number)),
                "ms" | "s" | "m" | "h" | "d" if number > 0.0 && !digits.contains('.') => tokens.push(Token::Duration),
                _ => return Err(format!("{word} is no duration")),
            }
            end
        } else if first.is_ascii_alphabetic() || first == '_' {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(Token::Name(rest[..end].to_owned()));
            end
        } else if first == '"' {
            let end = rest[1..].find('"').ok_or("a text does not end")?;
            if rest[1..=end].contains('\\') {
                return Err("a text with an escape".to_owned());
            }
            tokens.push(Token::Text);
            end + 2
        } else {
            let sign =
                SIGNS.iter().find(|sign| rest.starts_with(**sign)).ok_or_else(|| format!("{rest} begins oddly"))?;
            tokens.push(Token::Sign(sign));
            sign.len()
        };
        rest = rest[length..].trim_start();
    }
    Ok(tokens)
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    names: Names,
}

impl Parser {
    fn takes(&mut self, sign: &str) -> bool {
        let there = match self.tokens.get(self.at) {
            Some(Token::Sign(its)) => *its == sign,
            Some(Token::Name(its)) => its == sign,
            _ => false,
        };
        self.at += usize::from(there);
        there
    }

    fn expects(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { Err(format!("{sign} is missing before {:?}", self.tokens.get(self.at))) }
    }

    fn next(&mut self) -> Result<Token, String> {
        self.at += 1;
        self.tokens.get(self.at - 1).cloned().ok_or_else(|| "the expression ends too early".to_owned())
    }

    fn expression(&mut self, level: usize) -> Result<Kind, String> {
        let Some(operators) = OPERATORS.get(level) else { return self.unary() };
        let mut left = self.expression(level + 1)?;
        while let Some(operator) = operators.iter().find(|operator| self.takes(operator)) {
            let compares = level == 2;
            let bool = compares && self.takes("bool");
            let mut matched = false;
            if self.takes("on") || self.takes("ignoring") {
                self.labels()?;
                matched = true;
                let grouped = self.takes("group_left") || self.takes("group_right");
                if grouped && self.tokens.get(self.at) == Some(&Token::Sign("(")) {
                    self.labels()?;
                }
            }
            let right = self.expression(level + 1)?;
            let set = level < 2;
            left = match (left, right) {
                (Vector, Vector) => Vector,
                (Scalar, Scalar) if !set && !matched && (!compares || bool) => Scalar,
                (Vector, Scalar) | (Scalar, Vector) if !set && !matched => Vector,
                (left, right) => return Err(format!("{left:?} {operator} {right:?}")),
            };
        }
        Ok(left)
    }

    fn unary(&mut self) -> Result<Kind, String> {
        if !self.takes("-") {
            return self.primary();
        }
        match self.primary()? {
            kind @ (Scalar | Vector) => Ok(kind),
            kind => Err(format!("-{kind:?}")),
        }
    }

    fn primary(&mut self) -> Result<Kind, String> {
        match self.next()? {
            Token::Number(_) => Ok(Scalar),
            Token::Text => Ok(Text),
            Token::Sign("(") => {
                let kind = self.expression(0)?;
                self.expects(")")?;
                Ok(kind)
            }
            Token::Name(name) if AGGREGATIONS.contains(&name.as_str()) => self.aggregation(&name),
            Token::Name(name) if self.tokens.get(self.at) == Some(&Token::Sign("(")) => self.function(&name),
            Token::Name(name) => self.selector(name),
            other => Err(format!("{other:?} begins nothing")),
        }
    }

    fn aggregation(&mut self, name: &str) -> Result<Kind, String> {
        let grouped = self.grouping()?;
        self.expects("(")?;
        if ["bottomk", "quantile", "topk"].contains(&name) {
            if self.expression(0)? != Scalar {
                return Err(format!("{name} takes a number first"));
            }
            self.expects(",")?;
        }
        if self.expression(0)? != Vector {
            return Err(format!("{name} takes a vector"));
        }
        self.expects(")")?;
        if !grouped {
            self.grouping()?;
        }
        Ok(Vector)
    }

    fn grouping(&mut self) -> Result<bool, String> {
        let there = self.takes("by") || self.takes("without");
        if there {
            self.labels()?;
        }
        Ok(there)
    }

    fn labels(&mut self) -> Result<(), String> {
        self.expects("(")?;
        while !self.takes(")") {
            match self.next()? {
                Token::Name(label) => self.names.grouped.insert(label),
                other => return Err(format!("{other:?} is no label")),
            };
            if !self.takes(",") {
                self.expects(")")?;
                break;
            }
        }
        Ok(())
    }

    fn function(&mut self, name: &str) -> Result<Kind, String> {
        let known = FUNCTIONS.iter().find(|(known, ..)| *known == name);
        let (_, takes, gives) = known.ok_or_else(|| format!("{name} is no function that this parser knows"))?;
        self.expects("(")?;
        for (nth, kind) in takes.iter().enumerate() {
            if nth > 0 {
                self.expects(",")?;
            }
            let found = self.expression(0)?;
            if found != *kind {
                return Err(format!("{name} takes a {kind:?}, not a {found:?}"));
            }
        }
        self.expects(")")?;
        Ok(*gives)
    }

    fn selector(&mut self, metric: String) -> Result<Kind, String> {
        let mut labels = BTreeSet::new();
        if self.takes("{") {
            while !self.takes("}") {
                let Token::Name(label) = self.next()? else { return Err(format!("{metric} has no label")) };
                if !["=", "!=", "=~", "!~"].iter().any(|sign| self.takes(sign)) {
                    return Err(format!("{label} is not matched"));
                }
                if self.next()? != Token::Text {
                    return Err(format!("{label} is matched with no text"));
                }
                labels.insert(label);
                if !self.takes(",") {
                    self.expects("}")?;
                    break;
                }
            }
        }
        self.names.selectors.push((metric, labels));
        if !self.takes("[") {
            return Ok(Vector);
        }
        if self.next()? != Token::Duration {
            return Err("a range without a duration".to_owned());
        }
        self.expects("]")?;
        Ok(Range)
    }
}

#[test]
fn promql_malformed_expression_refused() {
    let names = parse(
        r#"histogram_quantile(0.99, sum by (le, route) (rate(a_bucket{route=~"/api/.*", x!="1",}[5m])))
           > 2 * 0.5 and on (route) (sum(b) without (y) or vector(0)) >= bool -1"#,
    )
    .unwrap();
    let of = |labels: &[&str]| labels.iter().map(|label| (*label).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!(names.selectors, [("a_bucket".to_owned(), of(&["route", "x"])), ("b".to_owned(), of(&[]))]);
    assert_eq!(names.grouped, of(&["le", "route", "y"]));
    for good in ["a", "time() - max by (p) (a) > 60", "1 > bool 2", "topk(5, a)", "sum(a) / clamp_min(sum(b), 1)"] {
        parse(good).unwrap_or_else(|fault| panic!("{good}: {fault}"));
    }
    for bad in [
        "",
        "a[5m]",
        "rate(a)",
        "rate(a[5m]",
        "sum(1)",
        "sum by route (a)",
        "1 > 2",
        "1 and a",
        "a b",
        "a{x=1}",
        "a{x}",
        "a{x=\"1\"",
        "a[5]",
        "a[x]",
        "nothing(a)",
        "topk(a)",
        "a >",
        "a + on (x) 1",
        "\"text\"",
        "5m",
        "a ! b",
        "1.2.3",
        "histogram_quantile(a, b)",
        "label_replace(a, \"b\")",
        "a = b",
        "(a",
        "rate(a[5m])[5m]",
    ] {
        assert!(parse(bad).is_err(), "{bad}");
    }
}
