//! Tables that fit: columns are left out, the least needed first, until the rest has room.
//!
//! A row is always one line, so that `grep` works on it and notes can stand under it.

use comfy_table::{CellAlignment, Color, Table};

use super::human;
use super::outcome::Screen;

/// What a cell wants to say beside its text. Never the only sign of it: colour may be off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    #[default]
    Plain,
    Good,
    Warning,
    Bad,
}

/// Text in the colour of its tone, outside of a table.
pub(super) fn toned(text: &str, tone: Tone, screen: &Screen) -> String {
    let code = match tone {
        Tone::Plain => return text.to_owned(),
        _ if !screen.colour => return text.to_owned(),
        Tone::Good => 32,
        Tone::Warning => 33,
        Tone::Bad => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// One cell.
#[derive(Clone, Debug)]
pub(super) struct Cell {
    text: String,
    tone: Tone,
}

impl Cell {
    pub fn toned(text: &impl ToString, tone: Tone) -> Self {
        Self {
            text: text.to_string(),
            tone,
        }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::toned(&text, Tone::Plain)
    }
}

/// One column.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    title: &'static str,
    right: bool,
    /// Columns with the highest number go first; 0 stays always.
    dispensable: u8,
}

impl Column {
    pub const fn left(title: &'static str) -> Self {
        Self {
            title,
            right: false,
            dispensable: 0,
        }
    }

    pub const fn right(title: &'static str) -> Self {
        Self {
            right: true,
            ..Self::left(title)
        }
    }

    /// Left out where there is no room; the highest `order` first.
    #[must_use]
    pub const fn dispensable(self, order: u8) -> Self {
        Self {
            dispensable: order,
            ..self
        }
    }
}

/// A table.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    columns: Vec<Column>,
    rows: Vec<(Vec<Cell>, Vec<String>)>,
}

const GAP: u16 = 2;

impl Grid {
    pub fn new(columns: &[Column]) -> Self {
        Self {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row, and the notes that stand under it.
    pub fn row(&mut self, cells: impl Into<Vec<Cell>>, notes: Vec<String>) {
        let cells = cells.into();
        debug_assert_eq!(cells.len(), self.columns.len());
        self.rows.push((cells, notes));
    }

    /// The table, every line behind `indent`.
    pub fn render(&self, screen: &Screen, indent: &str) -> String {
        let mut shown: Vec<usize> = (0..self.columns.len()).collect();
        let mut table = self.table(&shown, screen);
        if let Some(width) = screen.width {
            while too_wide(&table, usize::from(width), indent) {
                let last = shown
                    .iter()
                    .copied()
                    .max_by_key(|column| self.columns[*column].dispensable);
                match last {
                    Some(last) if self.columns[last].dispensable > 0 => {
                        shown.retain(|column| *column != last);
                    }
                    _ => break,
                }
                table = self.table(&shown, screen);
            }
        }
        let mut text = String::new();
        let mut lines = table.lines();
        let mut put = |line: &str| {
            text += indent;
            text += line.trim_end();
            text += "\n";
        };
        put(&lines.next().unwrap_or_default());
        for ((_, notes), line) in self.rows.iter().zip(lines) {
            put(&line);
            for note in notes {
                put(&format!("  {}", human::printable(note)));
            }
        }
        text
    }

    fn table(&self, shown: &[usize], screen: &Screen) -> Table {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING).force_no_tty();
        if screen.colour {
            table.enforce_styling().style_text_only();
        }
        table.set_header(shown.iter().map(|column| self.columns[*column].title));
        for (cells, _) in &self.rows {
            table.add_row(shown.iter().map(|column| {
                let Cell { text, tone } = &cells[*column];
                let cell = comfy_table::Cell::new(human::printable(text));
                match tone {
                    Tone::Plain => cell,
                    Tone::Good => cell.fg(Color::Green),
                    Tone::Warning => cell.fg(Color::Yellow),
                    Tone::Bad => cell.fg(Color::Red),
                }
            }));
        }
        for (place, column) in shown.iter().enumerate() {
            let right = self.columns[*column].right;
            if let Some(column) = table.column_mut(place) {
                column.set_padding((0, GAP));
                if right {
                    column.set_cell_alignment(CellAlignment::Right);
                }
            }
        }
        table
    }
}

fn too_wide(table: &Table, width: usize, indent: &str) -> bool {
    let widths = table.column_max_content_widths();
    let gaps = usize::from(GAP) * widths.len().saturating_sub(1);
    let content: usize = widths.into_iter().map(usize::from).sum();
    indent.len() + content + gaps > width
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn screen(width: Option<u16>, colour: bool) -> Screen {
        Screen {
            width,
            colour,
            now: SystemTime::UNIX_EPOCH,
        }
    }

    fn grid() -> Grid {
        let mut grid = Grid::new(&[
            Column::left("NAME"),
            Column::left("STATE"),
            Column::right("PACKETS").dispensable(1),
            Column::right("BYTES").dispensable(2),
        ]);
        grid.row(
            [
                "a".into(),
                Cell::toned(&"UP", Tone::Good),
                "1,204".into(),
                "9 B".into(),
            ],
            vec![],
        );
        grid.row(
            [
                "bb\x1bb".into(),
                Cell::toned(&"DOWN", Tone::Bad),
                7.into(),
                "".into(),
            ],
            vec!["refused".into()],
        );
        grid
    }

    #[test]
    fn rows_are_lines_with_their_notes_below() {
        let text = grid().render(&screen(None, false), " ");
        assert_eq!(
            text,
            " NAME       STATE  PACKETS  BYTES\n \
             a          UP       1,204    9 B\n \
             bb\\u{1b}b  DOWN         7\n   refused\n"
        );
    }

    #[test]
    fn what_matters_least_goes_first_where_there_is_no_room() {
        let header = |width| {
            grid()
                .render(&screen(Some(width), false), "")
                .lines()
                .next()
                .unwrap()
                .to_owned()
        };
        assert_eq!(header(32), "NAME       STATE  PACKETS  BYTES");
        assert_eq!(header(31), "NAME       STATE  PACKETS");
        assert_eq!(header(22), "NAME       STATE");
        assert_eq!(header(3), "NAME       STATE");
    }

    #[test]
    fn colour_changes_no_word() {
        let plain = grid().render(&screen(None, false), "");
        let colour = grid().render(&screen(None, true), "");
        assert!(!plain.contains('\x1b') && colour.contains("\x1b["));
        let mut stripped = String::new();
        for (place, part) in colour.split("\x1b[").enumerate() {
            stripped += if place == 0 {
                part
            } else {
                part.split_once('m').unwrap().1
            };
        }
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&stripped), words(&plain));
    }
}
