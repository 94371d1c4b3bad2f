//! The known word nearest to a mistyped one.

/// The word of `known` that `word` was probably meant to be.
pub fn nearest<'k>(word: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    /// Longer than every known word; the distance to a very long one takes long to find.
    const LONGEST_BYTES: usize = 64;
    if word.len() > LONGEST_BYTES {
        return None;
    }
    let word = word.to_lowercase().replace('-', "_");
    known
        .map(|candidate| {
            let comparable = candidate.to_lowercase().replace('-', "_");
            (strsim::damerau_levenshtein(&word, &comparable), candidate)
        })
        .filter(|(distance, candidate)| *distance <= (candidate.len() / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}
