//! A conversation that remembers: each turn prefills only what is new.
//!
//! What was said stays in the cache, answers included, exactly as the model wrote them. A new turn therefore
//! continues from there, with the part of the chat format that closes the last answer and holds the new question.
//! Only when the past changes (undo, a full context, an answer that was cut) is it prefilled from the start.
//!
//! Where the context has no room for the turns and a usual answer, the oldest exchanges are forgotten before the answer
//! begins; where a longer answer comes to the edge of the context, they are forgotten then, and the answer goes on.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::{Arc, atomic::AtomicBool};

use crate::{Error, Model, Network};
use gemma_generate::{
    Cache, FinishReason, GenerateOptions, Generation, Prompt, Request, Sequence, TextStream, Timings, TokenMask,
};
use gemma_tokenizer::{ChatTemplate, Part, RenderedChat, Role, TokenId, Turn};

/// An answer is left at least this part of the context to begin with, or its longest length where that is less.
const ANSWER_PART: usize = 4;

/// What stands among the texts of a conversation, such as images, in the order in which they came. A model that reads text
/// only has [`TextOnly`].
pub trait Attachments {
    /// One of them.
    type Item;

    /// Adds one at the end.
    fn push(&mut self, item: Self::Item);

    /// Forgets some.
    fn drain(&mut self, range: Range<usize>);

    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The tokens of rendered turns in which all of them from number `first` on have their places.
    ///
    /// # Errors
    /// When there are more or fewer places.
    fn tokens(&self, chat: &RenderedChat, first: usize) -> Result<Vec<TokenId>, Error>;

    /// The prompt of such tokens.
    fn prompt(&self, tokens: Vec<TokenId>, first: usize) -> Prompt;
}

/// Nothing stands among the texts.
#[derive(Clone, Copy, Debug)]
pub struct TextOnly;

impl Attachments for TextOnly {
    type Item = Infallible;

    fn push(&mut self, item: Infallible) {
        match item {}
    }

    fn drain(&mut self, _range: Range<usize>) {}

    fn len(&self) -> usize {
        0
    }

    fn tokens(&self, _chat: &RenderedChat, _first: usize) -> Result<Vec<TokenId>, Error> {
        Err(Error::Places { found: 1, given: 0 })
    }

    fn prompt(&self, tokens: Vec<TokenId>, _first: usize) -> Prompt {
        Prompt::Tokens(tokens)
    }
}

/// A conversation with a model: [`reply`](Self::reply) gives the answer to a text piece by piece; [`say`](Self::say) hands
/// the pieces to a function.
#[derive(Debug)]
pub struct Conversation<'m, N: Network, A = TextOnly> {
    model: &'m Model<N>,
    attachments: A,
    options: GenerateOptions,
    /// How turns become a prompt.
    template: ChatTemplate,
    /// The system prompt, which is never forgotten.
    system: Option<Turn>,
    turns: Vec<Turn>,
    /// The sequence of `turns`; `None` when it has to begin anew.
    sequence: Option<Sequence<N::Cache>>,
    /// Most tokens of the conversation, where fewer than the model's context.
    limit: Option<usize>,
    /// What restricts the next answer.
    mask: NextMask<'m>,
}

/// The mask of the next answer.
#[derive(Default)]
struct NextMask<'m>(Option<Box<dyn TokenMask + 'm>>);

impl std::fmt::Debug for NextMask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("NextMask").field(&self.0.is_some()).finish()
    }
}

/// How an answer ended.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// Why there is no more of it.
    pub reason: FinishReason,
    /// What it took.
    pub timings: Timings,
    /// Exchanges at the beginning that were dropped before or during this answer to make room; 0 in most turns.
    pub forgotten: usize,
}

impl<'m, N: Network> Conversation<'m, N> {
    /// An empty conversation.
    pub fn new(model: &'m Model<N>, options: GenerateOptions) -> Self {
        Self::with_attachments(model, options, TextOnly)
    }
}

impl<'m, N: Network, A: Attachments> Conversation<'m, N, A> {
    /// An empty conversation in which more than text may be said; `attachments` has none yet.
    pub fn with_attachments(model: &'m Model<N>, options: GenerateOptions, attachments: A) -> Self {
        Self {
            model,
            attachments,
            options,
            template: model.chat_template().clone(),
            system: None,
            turns: Vec::new(),
            sequence: None,
            limit: None,
            mask: NextMask::default(),
        }
    }

    /// The same conversation with another chat template than the model's.
    pub fn with_template(mut self, template: ChatTemplate) -> Self {
        self.template = template;
        self.sequence = None;
        self
    }

    /// The same conversation under a system prompt, which stays when older turns are forgotten. Where the model's
    /// format has no system turn, it stands in front of the first question.
    pub fn with_system(mut self, text: impl Into<String>) -> Self {
        self.set_system(Some(text.into()));
        self
    }

    /// Changes the system prompt, or takes it away; what was said stays.
    pub fn set_system(&mut self, text: Option<String>) {
        self.system = text.map(Turn::system);
        self.sequence = None;
    }

    /// The same conversation after these turns of text: questions and answers in turn, the last of them an answer. The next
    /// question prefills them.
    ///
    /// # Errors
    /// [`Error::Turns`] when they are not.
    pub fn with_turns(mut self, turns: Vec<Turn>) -> Result<Self, Error> {
        self.set_turns(turns)?;
        Ok(self)
    }

    /// Puts these turns of text in the place of what was said, as [`with_turns`](Self::with_turns) has them.
    ///
    /// # Errors
    /// [`Error::Turns`] when they are not questions and answers in turn; the conversation is then as it was.
    pub fn set_turns(&mut self, turns: Vec<Turn>) -> Result<(), Error> {
        let role = |index: usize| if index.is_multiple_of(2) { Role::User } else { Role::Model };
        if let Some(turn) = turns.iter().enumerate().position(|(index, turn)| turn.role != role(index)) {
            return Err(Error::Turns { turn });
        }
        if !turns.len().is_multiple_of(2) {
            return Err(Error::Turns { turn: turns.len() });
        }
        self.turns = turns;
        self.attachments.drain(0..self.attachments.len());
        self.sequence = None;
        Ok(())
    }

    /// The same conversation in at most `tokens` tokens of context; the model's context length where that is less.
    pub fn with_context(mut self, tokens: usize) -> Self {
        self.limit = Some(tokens);
        self
    }

    /// Most tokens of the conversation; `None`: no limit.
    pub fn context(&self) -> Option<usize> {
        let model = self.model.network().context_length();
        self.limit.map_or(model, |limit| Some(model.map_or(limit, |model| model.min(limit))))
    }

    /// Restricts the tokens of the next answer, and of no other, for example to those that a grammar allows.
    pub fn restrict_next(&mut self, mask: Box<dyn TokenMask + 'm>) {
        self.mask = NextMask(Some(mask));
    }

    /// Says something and hands the answer to `show`, piece by piece; `cancel` ends it early.
    ///
    /// An answer that never began leaves the conversation as it was.
    ///
    /// # Errors
    /// When the model cannot answer, or `show` fails.
    pub fn say<E: From<Error>>(
        &mut self,
        text: &str,
        cancel: Arc<AtomicBool>,
        show: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<Answered, E> {
        self.say_with(Vec::new(), text, cancel, show)
    }

    /// [`say`](Self::say) something about what is attached, which stands in front of the text.
    ///
    /// # Errors
    /// As [`say`](Self::say).
    pub fn say_with<E: From<Error>>(
        &mut self,
        attached: Vec<A::Item>,
        text: &str,
        cancel: Arc<AtomicBool>,
        mut show: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<Answered, E> {
        let mut reply = self.reply_with(attached, text, cancel)?;
        for piece in reply.by_ref() {
            show(&piece?)?;
        }
        Ok(reply.finish()?)
    }

    /// Says something; the answer is an iterator of its pieces of text.
    ///
    /// # Errors
    /// When the model cannot answer; the conversation is then as it was.
    pub fn reply(&mut self, text: &str) -> Result<Reply<'_, 'm, N, A>, Error> {
        self.reply_with(Vec::new(), text, Arc::default())
    }

    /// [`reply`](Self::reply) to a text about what is attached, which stands in front of the text; the answer ends
    /// early once `cancel` is true.
    ///
    /// # Errors
    /// As [`reply`](Self::reply).
    pub fn reply_with(
        &mut self,
        attached: Vec<A::Item>,
        text: &str,
        cancel: Arc<AtomicBool>,
    ) -> Result<Reply<'_, 'm, N, A>, Error> {
        self.model.tokenizer()?;
        self.turns.push(match attached.len() {
            0 => Turn::user(text),
            count => {
                let mut parts = vec![Part::Image; count];
                parts.push(Part::Text(text.to_owned()));
                Turn::with_parts(Role::User, parts)
            }
        });
        attached.into_iter().for_each(|item| self.attachments.push(item));
        let (generation, forgotten) = match self.begin() {
            Ok(begun) => begun,
            Err(error) => {
                self.pop();
                return Err(error);
            }
        };
        self.replying(generation, forgotten, cancel)
    }

    /// The answer of a generation that was begun.
    fn replying(
        &mut self,
        generation: Generation<'m, N>,
        forgotten: usize,
        cancel: Arc<AtomicBool>,
    ) -> Result<Reply<'_, 'm, N, A>, Error> {
        let generation = match self.mask.0.take() {
            Some(mask) => generation.with_mask(mask),
            None => generation,
        };
        let generation = self.model.speculating(generation).with_cancel(cancel);
        let stream = TextStream::new(generation, self.model.tokenizer()?.stream());
        let (answer, said, before) = (String::new(), Vec::new(), Timings::default());
        Ok(Reply { conversation: self, stream: Some(stream), answer, said, before, forgotten, over: false })
    }

    /// Answers the last question again, in place of the answer it had; `None` where nothing was asked.
    ///
    /// # Errors
    /// When the model cannot answer, or `show` fails. Where the new answer never began, the old one stays.
    pub fn say_again<E: From<Error>>(
        &mut self,
        cancel: Arc<AtomicBool>,
        mut show: impl FnMut(&str) -> Result<(), E>,
    ) -> Result<Option<Answered>, E> {
        let before = self.sequence.take();
        let Some(answer) = self.turns.pop() else { return Ok(None) };
        let question = self.turns.last().cloned().unwrap_or_else(|| Turn::user(""));
        let (generation, forgotten) = match self.begin() {
            Ok(begun) => begun,
            Err(error) => {
                self.turns.push(answer);
                self.sequence = before;
                return Err(error.into());
            }
        };
        let asked = self.turns.len();
        let mut reply = self.replying(generation, forgotten, cancel)?;
        let said = reply.by_ref().try_for_each(|piece| show(&piece?));
        let answered = match said {
            Ok(()) => reply.finish().map_err(E::from),
            Err(error) => {
                drop(reply);
                Err(error)
            }
        };
        // an answer that never began took its question with it, and what was attached to that
        if self.turns.len() < asked && question.images() == 0 {
            self.turns.push(question);
            self.turns.push(answer);
        }
        answered.map(Some)
    }

    /// How many attachments the first exchanges have.
    fn attached_to(&self, exchanges: usize) -> usize {
        self.turns[..2 * exchanges].iter().map(Turn::images).sum()
    }

    /// The tokens of the conversation without its first exchanges, up to where the answer begins.
    fn prompt_without(&self, exchanges: usize) -> Result<Vec<TokenId>, Error> {
        let turns: Vec<Turn> = self.system.iter().chain(&self.turns[2 * exchanges..]).cloned().collect();
        let first = self.attached_to(exchanges);
        if first == self.attachments.len() {
            return Ok(self.model.tokenizer()?.chat(&self.template, &turns, true)?);
        }
        self.attachments.tokens(&self.template.render(&turns, true)?, first)
    }

    /// The tokens of the conversation without so many of its oldest exchanges that `wanted` tokens are left at most, and
    /// how many these are. The newest question stays, whatever its length.
    fn shortened(&self, wanted: usize) -> Result<(Vec<TokenId>, usize), Error> {
        let mut forgotten = 0;
        let mut whole = self.prompt_without(0)?;
        while whole.len() > wanted && self.turns.len() > 2 * forgotten + 1 {
            forgotten += 1;
            whole = self.prompt_without(forgotten)?;
        }
        Ok((whole, forgotten))
    }

    /// Most tokens that may follow `tokens` ones, of `wanted` ones.
    ///
    /// # Errors
    /// When there is no room for any within the limit of the conversation.
    fn room(&self, tokens: usize, wanted: usize) -> Result<usize, Error> {
        // the model's own limit ends an answer by itself
        let Some(limit) = self.limit else { return Ok(wanted) };
        match limit.saturating_sub(tokens) {
            0 => Err(gemma_generate::Error::PromptTooLong { tokens, limit }.into()),
            room => Ok(wanted.min(room)),
        }
    }

    /// A generation that has the newest turn to prefill. Where the context has no room for the turns and an answer, it drops
    /// the oldest exchanges, so many at once that the next turns find their prefix in the cache again.
    fn begin(&mut self) -> Result<(Generation<'m, N>, usize), Error> {
        let (network, stop) = (self.model.network(), self.model.stop_tokens());
        let tokenizer = self.model.tokenizer()?;
        let (mut whole, mut forgotten) = (self.prompt_without(0)?, 0);
        if let Some(context) = self.context() {
            let answer = self.options.max_tokens.min(context / ANSWER_PART);
            let held = self.sequence.as_ref().map_or(0, Sequence::len);
            if whole.len().max(held) + answer > context {
                (whole, forgotten) = self.shortened((context - answer) / 2)?;
            }
        }
        let max_tokens = self.room(whole.len(), self.options.max_tokens)?;
        let options = GenerateOptions { max_tokens, ..self.options.clone() };
        let turns = self.turns.len() - 2 * forgotten;
        // what is to be forgotten is only forgotten once the rest is known to fit
        let reused = self.sequence.take().filter(|_| forgotten == 0).and_then(|sequence| {
            let new = unread(&whole, sequence.tokens(), turns - 1, self.system.is_some(), tokenizer.end_of_turn()?)?;
            let fits = self.context().is_none_or(|limit| sequence.len() + new.len() <= limit);
            fits.then_some((sequence, new))
        });
        let first = self.attached_to(forgotten);
        let generation = match reused {
            Some((sequence, new)) if self.attachments.is_empty() => {
                Generation::follow(network, sequence, new, &options, stop)?
            }
            None if first == self.attachments.len() => Generation::new(network, &whole, &options, stop)?,
            reused => {
                let (sequence, tokens) = match reused {
                    Some((sequence, new)) => {
                        let tokens = [sequence.tokens(), new].concat();
                        (sequence, tokens)
                    }
                    None => (Sequence::new(network.new_cache()), whole),
                };
                let prompt = self.attachments.prompt(tokens, first);
                let stop_tokens = stop.to_vec();
                let request = Request { prompt, options, stop_tokens, ..Request::default() };
                Generation::of(network, sequence, request)?
            }
        };
        self.forget(forgotten);
        Ok((generation, forgotten))
    }

    /// Forgets the oldest exchanges and what is attached to them.
    fn forget(&mut self, exchanges: usize) {
        let first = self.attached_to(exchanges);
        self.turns.drain(..2 * exchanges);
        self.attachments.drain(0..first);
    }

    /// Where an answer of the tokens `said` so far has come to the edge of the context: a generation that goes on with it
    /// after fewer of the oldest exchanges, and how many were forgotten. `None` where it ended otherwise, or where there
    /// is nothing to forget.
    fn make_room(
        &mut self,
        generation: &mut Generation<'m, N>,
        said: &[TokenId],
    ) -> Result<Option<(Generation<'m, N>, usize)>, Error> {
        let left = self.options.max_tokens.saturating_sub(said.len());
        let at_edge = matches!(generation.finish_reason(), Some(FinishReason::ContextFull | FinishReason::Length));
        let Some(context) = self.context().filter(|_| at_edge && left > 0 && self.attachments.is_empty()) else {
            return Ok(None);
        };
        let (whole, forgotten) = self.shortened((context / 2).saturating_sub(said.len()))?;
        let tokens = [whole.as_slice(), said].concat();
        if forgotten == 0 || tokens.len() >= context {
            return Ok(None);
        }
        let generation = generation.moved_to(&tokens, self.room(tokens.len(), left)?)?;
        self.forget(forgotten);
        Ok(Some((generation, forgotten)))
    }

    /// Forgets the newest turn and what is attached to it.
    fn pop(&mut self) -> Option<Turn> {
        let turn = self.turns.pop()?;
        let count = self.attachments.len();
        self.attachments.drain(count - turn.images()..count);
        Some(turn)
    }

    /// Forgets everything but the system prompt.
    pub fn reset(&mut self) {
        self.turns.clear();
        self.attachments.drain(0..self.attachments.len());
        self.sequence = None;
    }

    /// Forgets the last question and its answer; `false` if there is none.
    pub fn undo(&mut self) -> bool {
        self.pop();
        self.sequence = None;
        self.pop().is_some()
    }

    /// What was said.
    pub fn turns(&self) -> &[Turn] {
        &self.turns
    }

    /// Tokens of the sequence, and the size of its cache in bytes.
    pub fn remembered(&self) -> (usize, usize) {
        self.sequence.as_ref().map_or((0, 0), |sequence| (sequence.len(), sequence.cache().bytes_len()))
    }
}

/// An answer on its way: an iterator of its pieces. When it is dropped, the conversation keeps what was said until then.
#[must_use = "the answer comes as this is iterated over"]
pub struct Reply<'c, 'm, N: Network, A: Attachments = TextOnly> {
    conversation: &'c mut Conversation<'m, N, A>,
    /// `None` once the conversation has the answer.
    stream: Option<TextStream<'m, 'm, N>>,
    answer: String,
    /// The tokens of the answer before the exchanges were forgotten that stood in its way, and what these took.
    said: Vec<TokenId>,
    before: Timings,
    forgotten: usize,
    /// Whether the last piece has come, and no error.
    over: bool,
}

impl<N: Network, A: Attachments> Reply<'_, '_, N, A> {
    /// Runs to the end, and says how the answer ended. Pieces that were not taken are in the conversation's
    /// [turns](Conversation::turns).
    ///
    /// # Errors
    /// What the iterator yields.
    pub fn finish(mut self) -> Result<Answered, Error> {
        for piece in self.by_ref() {
            piece?;
        }
        let forgotten = self.forgotten;
        let stream = self.stream.as_ref().expect("the conversation has the answer only when this is dropped");
        let mut timings = self.before;
        timings += stream.timings();
        let wanted = self.conversation.options.max_tokens;
        let reason = match stream.finish_reason().unwrap_or(FinishReason::Stop) {
            // the limit of the conversation, which was what the context had left
            FinishReason::Length if timings.generated_tokens < wanted => FinishReason::ContextFull,
            reason => reason,
        };
        Ok(Answered { reason, timings, forgotten })
    }
}

impl<N: Network, A: Attachments> Iterator for Reply<'_, '_, N, A> {
    type Item = Result<String, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let Self { conversation, stream, said, before, forgotten, .. } = self;
        let piece = stream.as_mut()?.next_with(|generation| {
            let all: Vec<TokenId> =
                said.iter().copied().chain(generation.sampled().iter().map(|one| one.token)).collect();
            let Some((moved, more)) = conversation.make_room(generation, &all)? else { return Ok(None) };
            *said = all;
            *before += generation.timings();
            *forgotten += more;
            Ok(Some(moved))
        });
        self.over = piece.is_none();
        if let Some(Ok(piece)) = &piece {
            self.answer += piece;
        }
        piece
    }
}

impl<N: Network, A: Attachments> Drop for Reply<'_, '_, N, A> {
    fn drop(&mut self) {
        let Some(stream) = self.stream.take() else { return };
        let reason = stream.finish_reason();
        let conversation = &mut *self.conversation;
        if self.answer.trim().is_empty() && reason != Some(FinishReason::Stop) {
            conversation.pop();
            return;
        }
        conversation.turns.push(Turn::model(std::mem::take(&mut self.answer)));
        // A cut text leaves tokens in the cache that are no part of the answer, and so does one that was not taken whole.
        let whole = self.over && reason != Some(FinishReason::StopText);
        conversation.sequence = whole.then(|| stream.into_sequence());
    }
}

/// The part of `whole` (the conversation in tokens, newest question included) that comes after the last answer, when
/// the model has read (`read`) everything before; `turns` turns precede the question, each closed by one `end`, and
/// perhaps a system turn, closed or not.
///
/// The answer is not looked for by its tokens: a model may spell a text in other tokens than the tokenizer would, and
/// the chat format trims spaces. `None` when the format does not close every turn with `end`.
fn unread<'w>(
    whole: &'w [TokenId],
    read: &[TokenId],
    turns: usize,
    system: bool,
    end: TokenId,
) -> Option<&'w [TokenId]> {
    let ends: Vec<usize> = (0..whole.len()).filter(|&place| whole[place] == end).collect();
    if turns == 0 || !(turns + 1..=turns + 1 + usize::from(system)).contains(&ends.len()) {
        return None;
    }
    let closing = ends[ends.len() - 2];
    // The model has usually closed its answer itself.
    let closed = read.last() == Some(&end);
    Some(&whole[closing + usize::from(closed)..])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `<bos> ( user hi ) \n ( model hello ) \n ( user bye ) \n ( model`, where 9 closes a turn.
    const WHOLE: [TokenId; 15] = [2, 8, 20, 30, 9, 10, 8, 21, 31, 9, 10, 8, 20, 32, 9];

    #[test]
    fn only_what_follows_the_last_answer_is_read() {
        let read_and_closed = [2, 8, 20, 30, 9, 10, 8, 21, 99, 98, 9];
        assert_eq!(unread(&WHOLE, &read_and_closed, 2, false, 9), Some(&[10, 8, 20, 32, 9][..]));
        let cut_short = [2, 8, 20, 30, 9, 10, 8, 21, 99];
        assert_eq!(unread(&WHOLE, &cut_short, 2, false, 9), Some(&[9, 10, 8, 20, 32, 9][..]));
    }

    #[test]
    fn a_format_that_closes_turns_otherwise_is_read_anew() {
        assert_eq!(unread(&WHOLE, &[2], 4, false, 9), None);
        assert_eq!(unread(&WHOLE, &[2], 0, false, 9), None);
        // two turns and a system turn that is closed, too; without one, the same is another format
        let new = &[10, 8, 20, 32, 9][..];
        assert_eq!(unread(&WHOLE, &[2, 9], 1, true, 9), Some(new));
        assert_eq!(unread(&WHOLE, &[2, 9], 1, false, 9), None);
    }
}
