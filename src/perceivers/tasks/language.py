"""Masked language modelling on bytes and on SentencePiece tokens (paper section 4.1, Tables 1, 11 and 15)."""

from dataclasses import replace

from perceivers.core.perceiver import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.modalities import Text
from perceivers.preset import Preset
from perceivers.schema import Schema

WIDTH = 768
"""Of embeddings, queries and what the decoder writes."""


def language(
    latents: tuple[int, int] = (256, 1280), layers: int = 26, length: int = 2048, vocab_size: int = 262
) -> Preset:
    """The released byte model, by default; [N, D] latents, layers, length and vocabulary may differ."""
    text = Text(length=length, vocab_size=vocab_size, channels=WIDTH, mask_words=0.15)
    restored = replace(text, key="text", of="text", query_channels=WIDTH, mask_words=0.0)
    return Preset(
        schema=Schema(inputs={"text": text}, outputs={"restored": restored}),
        config=Config(
            latents=LatentsConfig(*latents),
            encoder=EncoderConfig(num_heads=8, qk_channels=256, v_channels=latents[1], join="pad"),
            processor=ProcessorConfig(num_heads=8, qk_channels=256, v_channels=latents[1], num_layers=layers),
            decoder=DecoderConfig(num_heads=8, qk_channels=256, v_channels=WIDTH, join="pad"),
        ),
    )
