use proptest::prelude::*;

use super::super::{Config, Faults, Machine, example};

/// Pieces that mean something to one of the layers.
const PIECES: [&str; 32] = [
    "",
    "\"",
    "\"\"\"",
    "'",
    "[",
    "]",
    "[[",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\n",
    "\r",
    "\0",
    "#",
    "-1",
    "0x",
    "1e9999",
    "99999999999999999999",
    "1979-05-27",
    "true",
    "é",
    "\u{feff}",
    "[[service]]\n",
    "[service.check]\n",
    "[[service.backend]]\n",
    "address = \"::1\"\n",
    "type = \"http\"\n",
    "\"0s\"",
    "\"999999999999999999y\"",
    "a.b",
];

/// One change of a text, at a place given as a share of its length.
#[derive(Clone, Debug)]
enum Change {
    Cut { at: usize, length: usize },
    Insert { at: usize, piece: usize },
    Replace { at: usize, length: usize, piece: usize },
    Repeat { at: usize, length: usize },
}

fn change() -> impl Strategy<Value = Change> {
    let at = 0..8192_usize;
    let length = 0..64_usize;
    let piece = 0..PIECES.len();
    prop_oneof![
        (at.clone(), length.clone()).prop_map(|(at, length)| Change::Cut { at, length }),
        (at.clone(), piece.clone()).prop_map(|(at, piece)| Change::Insert { at, piece }),
        (at.clone(), length.clone(), piece).prop_map(|(at, length, piece)| Change::Replace {
            at,
            length,
            piece
        }),
        (at, length).prop_map(|(at, length)| Change::Repeat { at, length }),
    ]
}

fn changed(text: &str, change: &Change) -> String {
    let characters: Vec<char> = text.chars().collect();
    let (at, length, piece) = match *change {
        Change::Cut { at, length } => (at, length, String::new()),
        Change::Insert { at, piece } => (at, 0, PIECES[piece].to_owned()),
        Change::Replace { at, length, piece } => (at, length, PIECES[piece].to_owned()),
        Change::Repeat { at, length } => {
            let at = at.min(characters.len());
            let end = (at + length).min(characters.len());
            (at, 0, characters[at..end].iter().collect())
        }
    };
    let at = at.min(characters.len());
    let end = (at + length).min(characters.len());
    let mut changed: String = characters[..at].iter().collect();
    changed.push_str(&piece);
    changed.extend(&characters[end..]);
    changed
}

/// Every answer to `text` is a configuration, or faults at places that are in the text.
fn judge(text: &str) {
    let answers = [Config::parse(text), Config::parse_for(text, &Machine::default())];
    for answer in answers {
        let Err(Faults(faults)) = answer else {
            continue;
        };
        assert!(!faults.is_empty());
        let lines: Vec<&str> = text.split('\n').collect();
        for fault in &faults {
            assert!((1..=lines.len()).contains(&fault.line), "{fault}");
            let columns = lines[fault.line - 1].chars().count() + 1;
            assert!((1..=columns).contains(&fault.column), "{fault}");
            assert!(!fault.message.contains('\n'), "{fault}");
        }
        assert!(faults.is_sorted_by_key(|fault| (fault.line, fault.column)));
    }
}

proptest! {
    #[test]
    fn a_mutated_example_does_no_harm(changes in prop::collection::vec(change(), 1..8)) {
        judge(&changes.iter().fold(example(), |text, change| changed(&text, change)));
    }

    #[test]
    fn any_text_does_no_harm(text in "\\PC{0,200}") {
        judge(&text);
    }

    #[test]
    fn any_value_does_no_harm(value in "\\PC{0,40}", key in 0..40_usize) {
        let example = example();
        let line = example.lines().filter(|line| line.contains(" = ")).nth(key);
        let name = line.and_then(|line| line.split(' ').next()).unwrap_or("schema");
        judge(&example.replace(&format!("\n{name} "), &format!("\n{name} = {value:?} #")));
    }
}

#[test]
fn deep_and_wide_texts_do_no_harm() {
    const MANY: usize = 100_000;
    for text in [
        "[".repeat(MANY),
        format!("a = {}", "[".repeat(MANY)),
        format!("a = {}", "{a = ".repeat(MANY)),
        format!("{}a = 1", "a.".repeat(MANY)),
        format!("[{}a]", "a.".repeat(MANY)),
        format!("schema = 1\n[agent]\ninterfaces = [{}]", "1,".repeat(MANY)),
        format!("schema = 1\n[agent]\ninterfaces = [{}]", "\"a\",".repeat(MANY)),
        format!("{} = 1", "k".repeat(MANY)),
        format!("schema = \"{}\"", "v".repeat(MANY)),
        format!("[agent]\non_stop = \"{}\"", "v".repeat(MANY)),
        "a\n".repeat(MANY),
        "a = 1\n".repeat(MANY),
    ] {
        judge(&text);
    }
}
