"""Text to speech behind one small interface, and hours of it on disk."""

from backbones.tts.engines import load_engine
from backbones.tts.interface import SAMPLE_RATE_HZ, SpokenSentence, TTSEngine
from backbones.tts.on_disk import SpeechOnDisk, SpeechWriter, speak_to_disk, speech_on_disk, write_flac, write_speech
from backbones.tts.text import sentences

__all__ = [
    "SAMPLE_RATE_HZ",
    "SpeechOnDisk",
    "SpeechWriter",
    "SpokenSentence",
    "TTSEngine",
    "load_engine",
    "sentences",
    "speak_to_disk",
    "speech_on_disk",
    "write_flac",
    "write_speech",
]
