//! The model that comes with the library.

use crate::{Error, Gemma, LoadOptions};
use gemma_backend::Device;
use gemma_tokenizer::{Family, Tokenizer};
use gemma_weights::Checkpoint;

const TOKENIZER: &[u8] = include_bytes!("../demo/tokenizer.json");

/// The files of the demo model's folder; `cargo xtask demo gemma` makes them.
const FILES: [(&str, &[u8]); 6] = [
    ("config.json", include_bytes!("../demo/config.json")),
    ("generation_config.json", include_bytes!("../demo/generation_config.json")),
    ("model.safetensors", include_bytes!("../demo/model.safetensors")),
    ("special_tokens_map.json", include_bytes!("../demo/special_tokens_map.json")),
    ("tokenizer.json", TOKENIZER),
    ("tokenizer_config.json", include_bytes!("../demo/tokenizer_config.json")),
];

/// Opens the demo model: a tiny network of the Gemma 2 architecture that this repository trained on text it made up.
/// It tells short stories and answers questions about small sums, comparisons and word lists; it needs no file and no
/// network.
///
/// # Errors
/// Only when the device fails.
pub fn demo(device: &Device) -> Result<Gemma, Error> {
    demo_with(&LoadOptions::default(), device)
}

/// [`demo`] with options.
///
/// # Errors
/// As [`demo`].
pub fn demo_with(options: &LoadOptions, device: &Device) -> Result<Gemma, Error> {
    Gemma::from_checkpoint(&demo_checkpoint()?, options, device)
}

/// The files of the demo model, opened like a folder.
///
/// # Errors
/// Never, for the files that are built in.
pub fn demo_checkpoint() -> Result<Checkpoint, Error> {
    Ok(Checkpoint::from_static(&FILES)?)
}

/// The tokenizer of the demo model.
///
/// # Errors
/// Never, for the file that is built in.
pub fn demo_tokenizer() -> Result<Tokenizer, Error> {
    Ok(Tokenizer::from_json(TOKENIZER, Family::Gemma)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Conversation, GenerateOptions};
    use std::sync::Arc;

    #[test]
    fn prompts_share_forward_passes_and_a_sequence_goes_on() {
        let gemma = demo(&gemma_backend::default_device().unwrap()).unwrap();
        let options = GenerateOptions::greedy(12);
        let prompts = ["Once upon a time", "Long ago"];
        let together = gemma.generate_batch(&prompts, &options).unwrap();
        for (prompt, answer) in prompts.into_iter().zip(&together) {
            assert_eq!(answer.text, gemma.generate(prompt, &options).unwrap().text);
        }
        let mut begun = gemma.stream(prompts[0], &GenerateOptions::greedy(5)).unwrap();
        let start: String = begun.by_ref().map(Result::unwrap).collect();
        let rest = gemma.stream_from(begun.into_sequence(), "", &GenerateOptions::greedy(7)).unwrap();
        assert_eq!(start + &rest.finish().unwrap().text, together[0].text);
    }

    #[test]
    fn an_answer_is_an_iterator_and_one_that_is_dropped_is_kept_as_far_as_it_came() {
        let gemma = demo(&gemma_backend::default_device().unwrap()).unwrap();
        let mut conversation = Conversation::new(&gemma, GenerateOptions::greedy(16));
        let whole: String = conversation.reply("What is 7 plus 5?").unwrap().map(Result::unwrap).collect();
        assert!(whole.contains("12"), "{whole}");
        let mut reply = conversation.reply("And plus 3?").unwrap();
        let first = reply.next().unwrap().unwrap();
        drop(reply);
        assert_eq!(conversation.turns().len(), 4);
        assert_eq!(conversation.turns()[3].text, first);
        let answered = conversation.reply("What is 1 plus 1?").unwrap().finish().unwrap();
        assert_eq!((answered.reason, conversation.turns().len()), (crate::FinishReason::Stop, 6));
    }

    #[test]
    fn an_error_of_main_is_a_sentence() {
        let error = Gemma::load("no/such/folder/at all", &gemma_backend::default_device().unwrap()).unwrap_err();
        assert_eq!(format!("{error:?}"), error.to_string());
    }

    #[test]
    fn a_question_that_is_too_long_leaves_the_conversation_as_it_was() {
        let gemma = demo(&gemma_backend::default_device().unwrap()).unwrap();
        let mut conversation = Conversation::new(&gemma, GenerateOptions::greedy(8));
        let quiet = |_: &str| Ok::<(), Error>(());
        conversation.say("What is 7 plus 5?", Arc::default(), quiet).unwrap();
        let before = conversation.turns().to_vec();
        let long = "many words ".repeat(2_000);
        assert!(conversation.say(&long, Arc::default(), quiet).is_err());
        assert_eq!(conversation.turns(), before);
        conversation.say("And plus 3?", Arc::default(), quiet).unwrap();
        assert_eq!(conversation.turns().len(), 4);
    }
}
