//! Large digits, three cells wide and five high.

pub(super) const HEIGHT: usize = 5;

const DIGITS: [[&str; HEIGHT]; 10] = [
    ["███", "█ █", "█ █", "█ █", "███"],
    [" █ ", "██ ", " █ ", " █ ", "███"],
    ["███", "  █", "███", "█  ", "███"],
    ["███", "  █", "███", "  █", "███"],
    ["█ █", "█ █", "███", "  █", "  █"],
    ["███", "█  ", "███", "  █", "███"],
    ["███", "█  ", "███", "█ █", "███"],
    ["███", "  █", "  █", "  █", "  █"],
    ["███", "█ █", "███", "█ █", "███"],
    ["███", "█ █", "███", "  █", "███"],
];

/// The lines of a number.
pub(super) fn large(number: usize) -> [String; HEIGHT] {
    let digits: Vec<usize> = number
        .to_string()
        .bytes()
        .map(|digit| usize::from(digit - b'0'))
        .collect();
    std::array::from_fn(|line| {
        let parts: Vec<&str> = digits.iter().map(|digit| DIGITS[*digit][line]).collect();
        parts.join(" ")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_as_wide_as_its_digits() {
        for number in [0, 7, 1234567890] {
            let digits = number.to_string().len();
            for line in large(number) {
                assert_eq!(line.chars().count(), digits * 4 - 1);
            }
        }
        assert_eq!(large(1)[4], "███");
    }
}
