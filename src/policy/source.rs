//! A look at the text of a module before the parser sees it: the parser takes twice as long for each
//! bracket inside another.

/// Deepest nesting of brackets.
const MAX_DEPTH: usize = 8;

/// Refuses text that would keep the parser busy; gives the line and the reason.
pub fn check(text: &str) -> Result<(), (usize, String)> {
    let (mut depth, mut line) = (0_usize, 1_usize);
    let mut characters = text.chars();
    while let Some(c) = characters.next() {
        match c {
            '\n' => line += 1,
            '#' => line += usize::from(characters.by_ref().any(|c| c == '\n')),
            '`' => line += characters.by_ref().take_while(|c| *c != '`').filter(|c| *c == '\n').count(),
            '"' => {
                let mut escaped = false;
                for c in characters.by_ref() {
                    line += usize::from(c == '\n');
                    if c == '"' && !escaped {
                        break;
                    }
                    escaped = c == '\\' && !escaped;
                }
            }
            '(' | '[' | '{' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    let why = format!("brackets are nested more than {MAX_DEPTH} deep: name parts of it as rules");
                    return Err((line, why));
                }
            }
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_is_counted_outside_of_texts() {
        let nest = |n: usize| format!("package a\nx := {}1{}", "[".repeat(n), "]".repeat(n));
        assert_eq!(check(&nest(8)), Ok(()));
        assert_eq!(check(&nest(9)).unwrap_err().0, 2);
        assert_eq!(
            check(&format!("# {}\nx := \"\\\"{}\"\ny := `{}`", "[".repeat(9), "{".repeat(9), "(".repeat(9))),
            Ok(())
        );
        assert_eq!(check("`\n\n`\n#\n\"\n\"[[[[[[[[[").unwrap_err().0, 6);
    }
}
