//! A Dockerfile as the rules see it: its stages, with the image each begins from, the user it ends
//! with, its variables and whether it has a health check.
//!
//! The form is that of <https://docs.docker.com/reference/dockerfile/>: instructions in any case,
//! comments, continued lines with the escape that the first line may choose, here-documents.

use serde_json::{Value, json};

use super::PolicyError;

/// An instruction: the line it begins at, its name in capitals, and what follows.
struct Instruction {
    line: usize,
    name: String,
    rest: String,
}

/// Reads a Dockerfile.
///
/// # Errors
/// When it has no `FROM`, or something that is no instruction.
pub fn read(place: &str, text: &str) -> Result<Value, PolicyError> {
    let mut stages: Vec<Value> = Vec::new();
    let mut names: Vec<String> = Vec::new();
    for Instruction { line, name, rest } in instructions(place, text)? {
        if name == "FROM" {
            let words: Vec<&str> = rest.split_whitespace().filter(|w| !w.starts_with("--")).collect();
            let Some(image) = words.first() else {
                return Err(PolicyError::new(format!("{place}:{line}"), "FROM names no image"));
            };
            let base = names.iter().position(|n| n.eq_ignore_ascii_case(image));
            let mut stage = json!({"line": line, "env": []});
            match base {
                // What an earlier stage set holds here as well.
                Some(base) => {
                    for key in ["user", "userLine", "healthcheck"] {
                        if let Some(value) = stages[base].get(key) {
                            stage[key] = value.clone();
                        }
                    }
                }
                // What is filled in by an argument is known only when it is built.
                None if *image == "scratch" || image.contains('$') => {}
                None => stage["image"] = (*image).into(),
            }
            let alias = words.iter().position(|w| w.eq_ignore_ascii_case("as")).and_then(|at| words.get(at + 1));
            names.push(alias.map_or_else(|| stages.len().to_string(), |n| (*n).to_owned()));
            stages.push(stage);
            continue;
        }
        let Some(stage) = stages.last_mut() else {
            if name == "ARG" {
                continue;
            }
            return Err(PolicyError::new(format!("{place}:{line}"), format!("{name} stands before the first FROM")));
        };
        match name.as_str() {
            "USER" => {
                stage["user"] = rest.trim().into();
                stage["userLine"] = line.into();
            }
            "HEALTHCHECK" => stage["healthcheck"] = (!rest.trim().eq_ignore_ascii_case("none")).into(),
            "ENV" | "ARG" => {
                let variables = variables(&rest, name == "ENV");
                if let Some(env) = stage["env"].as_array_mut() {
                    env.extend(
                        variables.into_iter().map(|(name, value)| json!({"name": name, "value": value, "line": line})),
                    );
                }
            }
            _ => {}
        }
    }
    if stages.is_empty() {
        return Err(PolicyError::new(place, "a Dockerfile begins with FROM, and here is none"));
    }
    Ok(
        json!({"apiVersion": "policy.perch.dev/v1", "kind": "Dockerfile", "metadata": {"name": place}, "stages": stages}),
    )
}

/// `NAME=value` pairs, or with ENV also the old `NAME value`.
fn variables(text: &str, old_form: bool) -> Vec<(String, String)> {
    let words = words(text);
    match words.first() {
        Some(first) if old_form && !first.contains('=') => {
            let value = text.trim().strip_prefix(first.as_str()).unwrap_or_default().trim();
            vec![(first.clone(), value.to_owned())]
        }
        _ => words.iter().filter_map(|w| w.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect(),
    }
}

/// Words, with quotes taken off and blanks in them kept.
fn words(text: &str) -> Vec<String> {
    let (mut words, mut word, mut quote, mut escaped) = (Vec::new(), String::new(), None, false);
    for c in text.chars() {
        match (quote, c) {
            _ if escaped => {
                word.push(c);
                escaped = false;
            }
            (None | Some('"'), '\\') => escaped = true,
            (None, '"' | '\'') => quote = Some(c),
            (Some(q), c) if q == c => quote = None,
            (None, c) if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            _ => word.push(c),
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

fn instructions(place: &str, text: &str) -> Result<Vec<Instruction>, PolicyError> {
    let escape = escape(text);
    let mut found = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((index, first)) = lines.next() {
        let first = first.trim();
        if first.is_empty() || first.starts_with('#') {
            continue;
        }
        let mut whole = first.to_owned();
        while whole.ends_with(escape) {
            whole.pop();
            // Comments and empty lines in between do not end it.
            let next = lines.by_ref().map(|(_, l)| l.trim()).find(|l| !l.is_empty() && !l.starts_with('#'));
            let Some(next) = next else { break };
            whole.push(' ');
            whole.push_str(next);
        }
        let (name, rest) = whole.split_once(char::is_whitespace).unwrap_or((&whole, ""));
        if !name.chars().all(|c| c.is_ascii_alphabetic()) {
            let message = format!("{name:?} is no instruction of a Dockerfile");
            return Err(PolicyError::new(format!("{place}:{}", index + 1), message));
        }
        let name = name.to_ascii_uppercase();
        if ["RUN", "COPY", "ADD"].contains(&name.as_str()) {
            for end in here_documents(rest) {
                // It ends with a line that is its word.
                let _ = lines.by_ref().find(|(_, l)| l.trim_start_matches('\t') == end);
            }
        }
        found.push(Instruction { line: index + 1, name, rest: rest.to_owned() });
    }
    Ok(found)
}

/// The character that continues a line: the first comment may choose it.
fn escape(text: &str) -> char {
    let directives = text.lines().map_while(|l| l.trim().strip_prefix('#')).filter_map(|l| l.split_once('='));
    let chosen = directives.filter(|(name, _)| name.trim().eq_ignore_ascii_case("escape")).map(|(_, v)| v.trim());
    if chosen.last() == Some("`") { '`' } else { '\\' }
}

/// The words that end the here-documents which an instruction begins.
fn here_documents(rest: &str) -> Vec<String> {
    let begin = |word: &str| {
        let at = word.find("<<")?;
        let name = word[at + 2..].trim_start_matches('-').trim_matches(['"', '\'']);
        let is_name = name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !name.is_empty();
        // `<<<` is a text for a shell.
        (is_name && !word.contains("<<<")).then(|| name.to_owned())
    };
    rest.split_whitespace().filter_map(begin).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(text: &str) -> Value {
        read("Dockerfile", text).unwrap()["stages"].clone()
    }

    #[test]
    fn stages_of_many_lines() {
        let text = "# syntax=docker/dockerfile:1\nARG V=1\nFROM --platform=$P golang:1 AS build\nRUN a && \\\n  # a comment\n\n  b\nENV A=1 B=\"two words\" \\\n  C='x'\nfrom scratch\ncopy --from=build /x /x\nUSER 10001:10001\nHEALTHCHECK CMD [\"/x\"]\n";
        assert_eq!(
            stages(text),
            json!([
                {"line": 3, "image": "golang:1", "env": [
                    {"name": "A", "value": "1", "line": 8}, {"name": "B", "value": "two words", "line": 8}, {"name": "C", "value": "x", "line": 8}]},
                {"line": 10, "env": [], "user": "10001:10001", "userLine": 12, "healthcheck": true},
            ])
        );
    }

    #[test]
    fn a_stage_from_a_stage_has_its_user() {
        let found = stages("FROM debian AS base\nUSER 7\nHEALTHCHECK CMD x\nFROM base\nHEALTHCHECK NONE\n");
        assert_eq!(found[1], json!({"line": 4, "env": [], "user": "7", "userLine": 2, "healthcheck": false}));
    }

    #[test]
    fn here_documents_are_passed_over() {
        let found = stages("FROM a\nRUN <<EOF cat\nUSER root\nEOF\nUSER 5\nRUN cat <<<USER\nENV OLD form here\n");
        assert_eq!((&found[0]["user"], &found[0]["userLine"]), (&json!("5"), &json!(5)));
        assert_eq!(found[0]["env"], json!([{"name": "OLD", "value": "form here", "line": 7}]));
    }

    #[test]
    fn another_escape() {
        let found = stages("# escape=`\nFROM a\nRUN x `\n y\nUSER 3\n");
        assert_eq!(found[0]["userLine"], 5);
    }

    #[test]
    fn what_is_no_dockerfile_is_refused_with_its_line() {
        let refused = |text: &str| read("f", text).unwrap_err().to_string();
        assert!(refused("").contains("FROM"));
        assert!(refused("USER 1\nFROM a").starts_with("f:1: USER stands before"));
        assert!(refused("FROM a\n{\"x\": 1}").starts_with("f:2: "));
        assert!(refused("FROM").starts_with("f:1: FROM names no image"));
    }
}
