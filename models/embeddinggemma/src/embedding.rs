//! Vectors of length 1.

/// One vector for each text, `[rows, dimensions]`, each of length 1.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embeddings {
    dimensions: usize,
    values: Vec<f32>,
}

/// The least length that a vector is divided by.
const LEAST_LENGTH: f64 = 1e-12;

impl Embeddings {
    /// Of rows of `from` values each, the first `dimensions`, normalised: `e / max(‖e‖₂, 1e-12)`.
    ///
    /// # Panics
    /// When `dimensions` is zero or more than `from`.
    pub fn cut(rows: &[f32], from: usize, dimensions: usize) -> Self {
        assert!((1..=from).contains(&dimensions), "{dimensions} of {from} dimensions");
        let values = rows.chunks_exact(from).flat_map(|row| {
            let row = &row[..dimensions];
            let length = row.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt().max(LEAST_LENGTH);
            row.iter().map(move |value| (f64::from(*value) / length) as f32)
        });
        Self { dimensions, values: values.collect() }
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.values.len().checked_div(self.dimensions).unwrap_or(0)
    }

    /// Whether there is no vector.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Values of one vector.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The vector of text `index`.
    ///
    /// # Panics
    /// When there is none.
    pub fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.dimensions..][..self.dimensions]
    }

    /// The vectors, in the order of the texts.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.values.chunks_exact(self.dimensions.max(1))
    }

    /// All values, row after row.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    pub(crate) fn append(&mut self, other: Self) {
        self.dimensions = other.dimensions;
        self.values.extend(other.values);
    }
}

/// The dot product of two vectors: of two of length 1 their cosine, from -1 (opposite) to 1 (alike).
///
/// # Panics
/// When they differ in size.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len(), "vectors of one size");
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_cut_and_have_length_one() {
        let found = Embeddings::cut(&[3.0, 4.0, 100.0, 0.0, 0.0, 1.0], 3, 2);
        assert_eq!((found.len(), found.dimensions()), (2, 2));
        assert_eq!(found.row(0), [0.6, 0.8]);
        assert_eq!(found.row(1), [0.0, 0.0], "a vector without length stays as it is");
        assert_eq!(found.rows().len(), 2);
        assert!((dot(found.row(0), found.row(0)) - 1.0).abs() < 1e-6);
    }
}
