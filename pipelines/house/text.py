"""The text side of the house model: a tokenizer of whole words and a small T5 encoder."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from pipelines.house.captions import all_words

MAX_WORDS = 40
TEXT_WIDTH = 192


def new_tokenizer() -> PreTrainedTokenizerFast:
    """Lower-cased words and punctuation marks, closed by `</s>`; a word that nobody taught is `<unk>`."""
    vocabulary = {word: i for i, word in enumerate(("<pad>", "</s>", "<unk>", *all_words()))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast: Any = PreTrainedTokenizerFast
    made: PreTrainedTokenizerFast = fast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=MAX_WORDS,
        padding_side="right",
    )
    return made


def new_text_encoder(num_words: int, *, seed: int) -> T5EncoderModel:
    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=num_words,
        d_model=TEXT_WIDTH,
        d_kv=48,
        num_heads=4,
        d_ff=384,
        num_layers=2,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
        pad_token_id=0,
        eos_token_id=1,
    )
    return T5EncoderModel(config)
