//! Comma-separated values as `tabdump` prints them (RFC 4180): a field may stand in quotes, in which
//! two are one, and which may hold whole lines.

/// A record and the line where it begins, from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) line: usize,
    pub(crate) fields: Vec<String>,
}

/// All records. What has not the form is read as well as it can be.
pub(crate) fn records(text: &str) -> Vec<Record> {
    let mut records = Vec::new();
    let mut fields: Vec<String> = Vec::new();
    let mut field = String::new();
    let (mut quoted, mut line, mut begun) = (false, 1, 1);
    let mut characters = text.chars().peekable();
    while let Some(it) = characters.next() {
        match it {
            '"' if quoted && characters.peek() == Some(&'"') => {
                characters.next();
                field.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            '\n' if !quoted => {
                fields.push(std::mem::take(&mut field));
                records.push(Record {
                    line: begun,
                    fields: std::mem::take(&mut fields),
                });
                begun = line + 1;
            }
            '\r' if !quoted => {}
            _ => field.push(it),
        }
        line += usize::from(it == '\n');
    }
    if !field.is_empty() || !fields.is_empty() {
        fields.push(field);
        records.push(Record {
            line: begun,
            fields,
        });
    }
    records.retain(|record| record.fields.iter().any(|it| !it.is_empty()));
    records
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_hold_commas_quotes_and_lines() {
        let text = "#a,b\n\"x,1\",\"say \"\"yes\"\"\"\r\n\n\"two\nlines\",\nlast";
        let record = |line, fields: &[&str]| Record {
            line,
            fields: fields.iter().map(|it| (*it).to_owned()).collect(),
        };
        assert_eq!(
            records(text),
            [
                record(1, &["#a", "b"]),
                record(2, &["x,1", "say \"yes\""]),
                record(4, &["two\nlines", ""]),
                record(6, &["last"]),
            ]
        );
    }
}
