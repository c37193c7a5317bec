//! Files with gaps that are filled in for each node, in the language of Jinja.

use std::io::{self, Write};

use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error, UndefinedBehavior, Value};

/// Steps after which a template counts as endless.
const MAX_STEPS: u64 = 1_000_000;
/// Longest file that a template makes, in bytes.
const MAX_BYTES: usize = 256 << 10;

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(MAX_STEPS));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let syntax = SyntaxConfig::builder()
        .keep_trailing_newline(true)
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build();
    environment.set_syntax(syntax.expect("the default delimiters are well-formed"));
    environment
}

/// Whether a text is a template; else why not.
pub(crate) fn check(text: &str) -> Result<(), String> {
    let environment = environment();
    let compiled = environment.template_from_str(text);
    compiled.map(drop).map_err(|error| describe(&error))
}

/// The file that a template makes of the values that it may name.
pub(crate) fn fill(text: &str, values: &Value) -> Result<Vec<u8>, String> {
    let environment = environment();
    let template = environment.template_from_str(text);
    let template = template.map_err(|error| describe(&error))?;
    let mut out = Bounded(Vec::new());
    let rendered = template.render_captured_to(values, &mut out);
    rendered.map_err(|error| describe(&error))?;
    Ok(out.0)
}

/// What is wrong, and where.
fn describe(error: &Error) -> String {
    let place = error
        .line()
        .map_or(String::new(), |line| format!("line {line}: "));
    let detail = error.detail().map(str::to_owned);
    format!(
        "{place}{}",
        detail.unwrap_or_else(|| error.kind().to_string())
    )
}

struct Bounded(Vec<u8>);

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_BYTES {
            return Err(io::Error::other("the file would be longer than 256 KiB"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn fill(text: &str) -> Result<String, String> {
        let nodes = vec![context! { name => "n1" }, context! { name => "n2" }];
        let values = context! { name => "n1", nodes };
        let filled = super::fill(text, &values)?;
        Ok(String::from_utf8(filled).unwrap())
    }

    #[test]
    fn gaps_are_filled() {
        let text = "{% for it in nodes %}\nNode={{ it.name }}\n{% endfor %}\n<{{ name|upper }}>\n";
        assert_eq!(fill(text).unwrap(), "Node=n1\nNode=n2\n<N1>\n");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        assert!(check("a\n{{ name").unwrap_err().starts_with("line 2: "));
        assert!(fill("a\n{{ nam }}").unwrap_err().starts_with("line 2: "));
    }

    #[test]
    fn nothing_is_endless() {
        assert!(
            fill("{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}")
                .is_err()
        );
        let long = "{% for i in range(9999) %}0123456789012345678901234567890123456789{% endfor %}";
        assert!(fill(long).is_err());
        assert!(fill("{% include '/etc/passwd' %}").is_err());
    }
}
