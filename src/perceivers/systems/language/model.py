"""Models of masked language, on bytes and on SentencePiece tokens (paper section 4.1, Tables 1, 11 and 15)."""

from dataclasses import replace
from functools import partial

from perceivers.core.config import Config, DecoderConfig, EncoderConfig, LatentsConfig, ProcessorConfig
from perceivers.modalities import Text
from perceivers.runs.presets import Published
from perceivers.schema import Schema
from perceivers.schema.preset import Preset

WIDTH = 768
"""Channels of embeddings, queries and decoder outputs."""


def language(
    latents: tuple[int, int] = (256, 1280),
    layers: int = 26,
    length: int = 2048,
    vocab_size: int = 262,
    width: int = WIDTH,
) -> Preset:
    """Return a model of masked text, by default the released byte model; latents are [N, D]."""
    text = Text(length=length, vocab_size=vocab_size, channels=width, mask_words=0.15)
    restored = replace(text, key="text", of="text", query_channels=width, mask_words=0.0)
    return Preset(
        schema=Schema(inputs={"text": text}, outputs={"restored": restored}),
        config=Config(
            latents=LatentsConfig(*latents),
            encoder=EncoderConfig(num_heads=8, qk_channels=256, v_channels=latents[1], channel_alignment="pad"),
            processor=ProcessorConfig(num_heads=8, qk_channels=256, v_channels=latents[1], num_layers=layers),
            decoder=DecoderConfig(num_heads=8, qk_channels=256, v_channels=width, channel_alignment="pad"),
        ),
    )


PRESETS = {
    "language": Published(language, 201_108_230, "201M", "113B", released=True),
    "language-sentencepiece": Published(partial(language, length=512, vocab_size=32000), 223_155_456, "223M", "119B"),
    "language-large": Published(partial(language, (256, 1536), 40), 425_607_430, "425M", "241B"),
    "language-128x1920": Published(partial(language, (128, 1920)), 430_132_230, "-", "120B"),
    "language-512x896": Published(partial(language, (512, 896)), 105_849_862, "-", "125B"),
}
"""Published models by name, with the parameters and FLOPs that the paper states."""
