//! The tasks that the model knows: captions, answers, boxes, masks.

use std::ops::Deref;

use gemma_generate::{GenerateOptions, Generated};

use crate::loc::{BoundingBox, CODES, Object, items_of_tokens, objects};
use crate::seg::Mask;
use crate::{Error, ImageFeatures, PaliGemma, prompt};

/// The most tokens of an answer to one of the tasks: about sixty objects.
const LONGEST_ANSWER: usize = 512;

/// Something found in an image.
#[derive(Clone, Debug, PartialEq)]
pub struct Detection {
    /// What it is, in the words of the question.
    pub label: String,
    /// Where it is, in pixels of the image.
    pub bounds: BoundingBox,
    /// The probability that the model gave to the four location tokens, from 0 to 1, where it is known.
    pub score: Option<f64>,
}

/// Something found in an image, and its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Segmentation {
    /// What it is, in the words of the question.
    pub label: String,
    /// Where it is, in pixels of the image.
    pub bounds: BoundingBox,
    /// As for a [`Detection`].
    pub score: Option<f64>,
    /// Which pixels belong to it.
    pub mask: Mask,
}

/// What was found, and the text in which the model said so. Objects that it did not spell out properly are in the text
/// only.
#[derive(Clone, Debug, PartialEq)]
pub struct Found<T> {
    /// The objects, in the order of the text.
    pub items: Vec<T>,
    /// The model's answer as it was.
    pub text: String,
}

impl<T> Deref for Found<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.items
    }
}

impl Detection {
    /// The objects of an answer about an image of that size; those without area are left out.
    pub fn of(objects: &[Object], width: usize, height: usize) -> Vec<Self> {
        let one = |object: &Object| {
            let bounds = BoundingBox::from_locations(object.locations, width, height)?;
            Some(Self { label: object.label.clone(), bounds, score: object.log_prob.map(f64::exp) })
        };
        objects.iter().filter_map(one).collect()
    }
}

impl<'m> ImageFeatures<'m> {
    /// Answers any prompt about the image.
    ///
    /// # Errors
    /// When an option is outside its range or the prompt does not fit.
    pub fn ask(&self, prompt: &str, options: &GenerateOptions) -> Result<Generated, Error> {
        self.model().ask(&[self], prompt, options)
    }

    /// Describes the image in a sentence of `language` (`en`, `de`, ...).
    ///
    /// # Errors
    /// When the model cannot answer.
    pub fn caption(&self, language: &str) -> Result<String, Error> {
        Ok(self.task(&prompt::caption(language))?.text)
    }

    /// Answers a question about the image in `language`.
    ///
    /// # Errors
    /// When the model cannot answer, or the question is too long.
    pub fn answer(&self, language: &str, question: &str) -> Result<String, Error> {
        Ok(self.task(&prompt::answer(language, question))?.text)
    }

    /// Reads the text in the image.
    ///
    /// # Errors
    /// When the model cannot answer.
    pub fn ocr(&self) -> Result<String, Error> {
        Ok(self.task(&prompt::ocr())?.text)
    }

    /// Finds things and where they are.
    ///
    /// # Errors
    /// When the model cannot answer, or there are too many things.
    pub fn detect<S: AsRef<str>>(&self, things: &[S]) -> Result<Found<Detection>, Error> {
        let answer = self.task(&prompt::detect(things))?;
        let items = Detection::of(&self.objects(&answer)?, self.width(), self.height());
        Ok(Found { items, text: answer.text })
    }

    /// Finds a thing, where it is and which pixels belong to it.
    ///
    /// # Errors
    /// When the model has no mask decoder, or cannot answer.
    pub fn segment(&self, thing: &str) -> Result<Found<Segmentation>, Error> {
        self.model().mask_decoder()?;
        let answer = self.task(&prompt::segment(thing))?;
        let items = self.model().segmentations(&self.objects(&answer)?, self.width(), self.height())?;
        Ok(Found { items, text: answer.text })
    }

    fn task(&self, prompt: &str) -> Result<Generated, Error> {
        self.ask(prompt, &GenerateOptions::greedy(LONGEST_ANSWER))
    }

    fn objects(&self, answer: &Generated) -> Result<Vec<Object>, Error> {
        Ok(objects(&items_of_tokens(self.model().tokenizer()?, &answer.tokens, &answer.logprobs)))
    }
}

impl PaliGemma {
    /// The objects of an answer with their masks, in an image of that size; those without area or without sixteen
    /// codes are left out.
    ///
    /// # Errors
    /// When the model has no mask decoder.
    pub fn segmentations(&self, objects: &[Object], width: usize, height: usize) -> Result<Vec<Segmentation>, Error> {
        let decoder = self.mask_decoder()?;
        let whole: Vec<(&Object, [u8; CODES])> =
            objects.iter().filter_map(|object| Some((object, object.codes?))).collect();
        let codes: Vec<[u8; CODES]> = whole.iter().map(|(_, codes)| *codes).collect();
        let one = |((object, _), map): (&(&Object, [u8; CODES]), Vec<f32>)| {
            let bounds = BoundingBox::from_locations(object.locations, width, height)?;
            let mask = Mask::stretch(&map, &bounds)?;
            Some(Segmentation { label: object.label.clone(), bounds, score: object.log_prob.map(f64::exp), mask })
        };
        Ok(whole.iter().zip(decoder.decode(&codes)).filter_map(one).collect())
    }
}
