//! The screen.

use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, BorderType, Paragraph};

use super::digits;
use super::view::{Row, View};

pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let backends = view.backends.len() as u16 + 2;
    let [head, numbers, list, events, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(digits::HEIGHT as u16 + 2),
        Constraint::Length(backends),
        Constraint::Min(3),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    frame.render_widget(head_line(view), head);
    let [broken, maglev] =
        Layout::horizontal([Constraint::Percentage(50), Constraint::Percentage(50)]).areas(numbers);
    let title = if view.tracked {
        "broken"
    } else {
        "broken (flows are not remembered)"
    };
    number(
        frame,
        broken,
        title,
        view.broken,
        if view.broken == 0 {
            Color::Green
        } else {
            Color::Red
        },
    );
    let colour = if view.maglev == 0 {
        Color::Green
    } else {
        Color::Yellow
    };
    number(
        frame,
        maglev,
        "Maglev alone would have broken",
        view.maglev,
        colour,
    );
    list_of_backends(frame, list, view);
    list_of_events(frame, events, view);
    frame.render_widget(key_line(frame.area().width), keys);
}

fn head_line(view: &View) -> Paragraph<'static> {
    let seconds = view.elapsed.as_secs();
    let agent = if view.agent {
        Span::raw("agent running")
    } else {
        Span::from("AGENT NOT RUNNING").red().bold()
    };
    Paragraph::new(Line::from(vec![
        Span::from(format!("xlb demo {:02}:{:02}  ", seconds / 60, seconds % 60)).bold(),
        Span::raw(format!(
            "{} TCP + {} UDP  {:.0} new/s  {:.0} answers/s  ",
            grouped(view.connections),
            grouped(view.datagrams),
            view.opens_per_s,
            view.answers_per_s
        )),
        agent,
    ]))
}

fn number(frame: &mut Frame<'_>, area: Rect, title: &str, number: usize, colour: Color) {
    let lines: Vec<Line<'_>> = digits::large(number).into_iter().map(Line::from).collect();
    let block = Block::bordered()
        .border_type(BorderType::Rounded)
        .title(format!(" {title} "));
    let text = Paragraph::new(lines)
        .alignment(Alignment::Center)
        .style(Style::new().fg(colour).add_modifier(Modifier::BOLD));
    frame.render_widget(text.block(block), area);
}

fn list_of_backends(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let mut title = format!(
        " backends: live flows; lost with their backend: {} ",
        grouped(view.lost)
    );
    if view.unstable > 0 {
        title = format!(
            " backends: live flows; lost: {}; {} slots moving, {} entries ",
            grouped(view.lost),
            grouped(view.unstable),
            grouped(view.entries)
        );
    }
    let block = Block::bordered().border_type(BorderType::Rounded).title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let most = view.backends.iter().map(|row| row.live).max().unwrap_or(0).max(1);
    let lines: Vec<Line<'_>> = view
        .backends
        .iter()
        .enumerate()
        .map(|(n, row)| backend(row, n == view.selected, most, inner.width))
        .collect();
    // The selected one stays in sight.
    let below = (view.selected + 1).saturating_sub(usize::from(inner.height));
    frame.render_widget(Paragraph::new(lines).scroll((below as u16, 0)), inner);
}

fn backend(row: &Row, selected: bool, most: usize, width: u16) -> Line<'static> {
    let Row {
        name,
        address: _,
        live,
        share,
        weight,
        state,
        detail,
    } = row;
    let about = format!("{live:>5}  {:>4.1} %  w{weight:<3} ", share * 100.0);
    let words = format!("{state} {detail}");
    let taken = 6 + about.chars().count() + words.chars().count().max(12);
    let room = usize::from(width).saturating_sub(taken);
    let length = (live * room).div_ceil(most);
    let colour = match state.as_str() {
        "UP" => Color::Green,
        "DOWN" => Color::Red,
        _ => Color::Yellow,
    };
    let bar = format!("{:<room$} ", "▇".repeat(length));
    let line = Line::from(vec![
        Span::raw(format!("{}{name:<4}", if selected { "▶" } else { " " })),
        Span::from(bar).fg(colour),
        Span::raw(about),
        Span::from(words).fg(colour),
    ]);
    if selected { line.bold() } else { line }
}

fn list_of_events(frame: &mut Frame<'_>, area: Rect, view: &View) {
    let title = match &view.busy {
        Some(what) => format!(" events: {what} ... "),
        None => " events ".into(),
    };
    let block = Block::bordered().border_type(BorderType::Rounded).title(title);
    let room = usize::from(block.inner(area).height);
    let skip = view.events.len().saturating_sub(room);
    let lines: Vec<Line<'_>> = view
        .events
        .iter()
        .skip(skip)
        .map(|(at, what)| {
            let seconds = at.as_secs();
            Line::from(format!("{:02}:{:02} {what}", seconds / 60, seconds % 60))
        })
        .collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

/// The keys, as many words as fit.
fn key_line(width: u16) -> Paragraph<'static> {
    const KEYS: [(&str, &str, &str); 9] = [
        ("↑↓", "", "choose"),
        ("k", "ill", "kill (RST)"),
        ("s", "ilent", "silent"),
        ("d", "rain", "drain"),
        ("r", "eady", "ready, back UP"),
        ("a", "dd", "add"),
        ("w", "eight", "weight"),
        ("x", " agent", "SIGKILL the agent"),
        ("q", "uit", "quit"),
    ];
    let wide = width >= 100;
    let mut spans = Vec::new();
    for (key, short, long) in KEYS {
        spans.push(Span::from(key).reversed().bold());
        spans.push(Span::raw(if wide {
            format!(" {long}  ")
        } else {
            format!("{short}  ")
        }));
    }
    Paragraph::new(Line::from(spans))
}

/// Thousands apart.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn screen(width: u16, height: u16, view: &View) -> String {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| draw(frame, view)).unwrap();
        terminal.backend().to_string()
    }

    #[test]
    fn everything_is_on_a_small_and_on_a_large_screen() {
        let mut view = View {
            elapsed: Duration::from_secs(75),
            connections: 2013,
            datagrams: 500,
            maglev: 1234,
            lost: 17,
            agent: true,
            tracked: true,
            unstable: 512,
            entries: 204,
            selected: 1,
            ..View::default()
        };
        for n in 1..=8 {
            view.backends.push(Row {
                name: format!("b{n}"),
                live: 250 + n,
                share: 0.125,
                weight: 1,
                state: if n == 3 { "DOWN" } else { "UP" }.into(),
                detail: if n == 3 { "L4TOUT" } else { "" }.into(),
                ..Row::default()
            });
        }
        view.happened("b3: cable pulled, nothing comes back".into());
        for (width, height) in [(80, 24), (120, 40)] {
            let text = screen(width, height, &view);
            for expected in [
                "xlb demo 01:15",
                "2,013 TCP + 500 UDP",
                " broken ",
                "Maglev alone would have broken",
                "512 slots moving, 204 entries",
                "▶b2",
                "b8",
                "DOWN L4TOUT",
                "01:15 b3: cable pulled, nothing comes back",
                "uit",
            ] {
                assert!(text.contains(expected), "{expected} at {width}x{height}:\n{text}");
            }
        }
    }

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(grouped),
            ["0", "999", "1,000", "1,234,567"]
        );
    }
}
