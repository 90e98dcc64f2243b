"""What runs in the process that speaks a chunk of captions; :mod:`src.demo.speech` starts it."""

import ctypes
import json
import sys

import numpy as np

from src.config import AudioEncoderConfig
from src.data.audio import KINDS

# from espeak-ng/speak_lib.h
AUDIO_OUTPUT_SYNCHRONOUS = 2
POS_CHARACTER = 1
CHARS_UTF8, PHONEMES = 0x1, 0x100
RATE, PITCH = 1, 3

# eSpeak NG 1.52 has no Mandarin syllable xiong and reads the character in English; its phonemes say it
RESPELL = {"熊": "[[S;j'ong35_|]]"}


class Synthesizer:
    """eSpeak NG with one voice. It keeps global state: use one in each process."""

    def __init__(self, voice: str, rate: int, pitch: int) -> None:
        import espeakng_loader  # optional: the GPL tool is not part of this project

        self._waves: list[bytes] = []
        self._lib = ctypes.CDLL(espeakng_loader.get_library_path())
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = self._lib.espeak_Initialize(AUDIO_OUTPUT_SYNCHRONOUS, 0, data, 0)
        if self.sample_rate <= 0:
            raise RuntimeError(f"eSpeak NG cannot load its data from {data.decode()}")
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._callback = kind(self._collect)  # kept: the library holds no reference
        self._lib.espeak_SetSynthCallback(self._callback)
        if self._lib.espeak_SetVoiceByName(voice.encode()) != 0:
            raise RuntimeError(f"eSpeak NG has no voice {voice}")
        self._lib.espeak_SetParameter(RATE, rate, 0)
        self._lib.espeak_SetParameter(PITCH, pitch, 0)

    def _collect(self, wave: "ctypes._Pointer", count: int, _events: int) -> int:
        if wave and count > 0:
            self._waves.append(ctypes.string_at(wave, 2 * count))
        return 0

    def say(self, text: str) -> np.ndarray:
        """The audio of a text, float32 [n] in −1 … 1 at ``sample_rate``."""
        self._waves.clear()
        data = "".join(RESPELL.get(char, char) for char in text).encode() + b"\0"
        flags = CHARS_UTF8 | PHONEMES
        self._lib.espeak_Synth(data, ctypes.c_size_t(len(data)), 0, POS_CHARACTER, 0, flags, None, None)
        self._lib.espeak_Synchronize()
        wave = np.frombuffer(b"".join(self._waves), np.int16)
        if not wave.any():
            raise RuntimeError(f"eSpeak NG gave no audio for {text}")
        return wave.astype(np.float32) / 32768


def main() -> None:
    """Reads a job as JSON from standard input; writes what a model reads into the file that the first argument names.

    With no ``audio`` in the job these are the samples themselves.
    """
    job = json.load(sys.stdin.buffer)
    voice = job["voice"]
    synthesizer = Synthesizer(voice["name"], voice["rate"], voice["pitch"])
    clips, rate = map(synthesizer.say, job["captions"]), synthesizer.sample_rate
    if job["audio"]:
        audio = AudioEncoderConfig(**job["audio"])
        clips = (KINDS[audio.input](clip, rate, audio) for clip in clips)
    clips = list(clips)
    np.savez(sys.argv[1], frames=np.concatenate(clips), lengths=[len(clip) for clip in clips], rate=rate)
