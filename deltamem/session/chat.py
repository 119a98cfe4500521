"""`ChatSession`: a conversation with a backbone that has memory.

A turn reads the user's message and writes it into the state, then makes the reply token by token and writes each as
it is fed back, where the adapter writes the reply to such a message (`DeltaMemConfig.reply_floor`). What the chat
template adds around them is read and not written. The session owns its state and its window and puts the state into the
memory for the length of a turn only, so several sessions can share one model.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from deltamem.chat_format import ChatFormat
from deltamem.errors import StateError
from deltamem.inspection import change_between
from deltamem.memory import DeltaMemory
from deltamem.session.detokenize import Detokenizer
from deltamem.session.events import Event, Ingested, TextChunk, TurnFinished
from deltamem.session.recorded import Direction, RecordedTokens
from deltamem.session.sampling import Sampler, Sampling
from deltamem.session.segmenter import Segmenter
from deltamem.session.trace import TurnWrites, WriteTrace
from deltamem.session.window import ContextWindow, chunks
from deltamem.state import MemoryState

MemoryMode = Literal["on", "read", "off"]

_LEAST_CONTEXT = 128


class ChatSession:
    """A conversation.

    Args:
        model: the backbone.
        tokenizer: its tokenizer, with a chat template.
        memory: the memory attached to the model; None chats with the frozen backbone.
        system: system prompt; None leaves it to the template.
        context: most tokens in the context window.
        sampling: how replies are drawn.
        mode: "on" reads and writes, "read" reads, "off" is the frozen backbone.
        state: what to begin with; None is an empty state.
        stops: further token ids that end a reply.
        trace: keep the write gates of the last turn in `writes`.
        recorded: replays the tokens of replies (see `RecordedTokens`); None makes each of them a call.

    Raises:
        ValueError: the context is too small for the system prompt and a turn.
        BackboneError: the tokenizer has no usable chat template.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        memory: DeltaMemory | None = None,
        *,
        system: str | None = None,
        context: int = 2048,
        sampling: Sampling | None = None,
        mode: MemoryMode = "on",
        state: MemoryState | None = None,
        stops: frozenset[int] = frozenset(),
        trace: bool = False,
        recorded: RecordedTokens | None = None,
    ) -> None:
        self.model, self.tokenizer, self.memory = model, tokenizer, memory
        self._recorded = recorded
        self._reply_floor = memory.config.reply_floor if memory is not None else 0.0
        self._trace = WriteTrace(memory if trace or self._reply_floor else None, tokenizer)
        self._keeps_trace = trace
        self.writes: TurnWrites | None = None
        self.stops = stops
        self.context = context
        self.form = ChatFormat.of(tokenizer, system, stops)
        self.sampling = (sampling or Sampling()).resolved(model.generation_config)
        self._sampler = Sampler(self.sampling)
        self._mode: MemoryMode = mode if memory is not None else "off"
        self._stop = False
        if memory is not None and state is None:
            memory.reset()
            state = memory.state
        self._state = state.clone() if state is not None else None
        self.state_before: MemoryState | None = None
        self.last: TurnFinished | None = None
        self._undo: tuple[list[list[int]], MemoryState | None] | None = None
        self._window = self._new_window()

    def _new_window(self) -> ContextWindow:
        if self.context < len(self.form.opening) + _LEAST_CONTEXT:
            raise ValueError(
                f"a context of {self.context} tokens is too small: the system prompt takes "
                f"{len(self.form.opening)} and a turn needs {_LEAST_CONTEXT}"
            )
        return ContextWindow(
            self.model, self.form.opening, self.form.following, self.context, self._frozen, self._recorded
        )

    # What a session can be asked and told between turns

    @property
    def state(self) -> MemoryState | None:
        """The state after the last turn; None without a memory."""
        return self._state

    @property
    def mode(self) -> MemoryMode:
        """Whether turns write, only read, or leave memory alone."""
        return self._mode

    @mode.setter
    def mode(self, mode: MemoryMode) -> None:
        if mode != "off" and self.memory is None:
            raise StateError("this backbone has no adapter, so there is no memory to switch on")
        if (mode == "off") != (self._mode == "off"):
            self._window.invalidate()  # its keys and values were bent, or were not
        self._mode = mode

    @property
    def window_tokens(self) -> int:
        """Tokens in the context window."""
        return len(self._window)

    def clear_window(self) -> None:
        """Forget the words of the conversation; the state stays."""
        self._window = self._new_window()
        self._undo = None

    def set_system(self, system: str | None) -> None:
        """Use another system prompt from the next turn on; the window's turns stay."""
        turns = self._window.copy_turns()
        before = self.form
        self.form = ChatFormat.of(self.tokenizer, system, self.stops)
        try:
            self._window = self._new_window()
        except ValueError:
            self.form = before
            raise
        self._window.restore(turns)

    def replace_state(self, state: MemoryState | None, before: MemoryState | None = None) -> None:
        """Go on with another state (None: an empty one) and an empty window; `before` is that before its last turn."""
        if self.memory is not None:
            if state is None:
                self.memory.reset()
                state = self.memory.state
            self.memory.state = state  # refuses one that does not fit
            self._state, self.state_before = state.clone(), before
        self.writes = None
        self.clear_window()

    def undo(self) -> bool:
        """Take the last turn back, words and writes; false when there is none to take back."""
        if self._undo is None:
            return False
        turns, self._state = self._undo
        self._window.restore(turns)
        self._undo = self.state_before = self.writes = None
        return True

    def stop(self) -> None:
        """End the reply being made at the next token; safe to call from a signal handler or another thread."""
        self._stop = True

    # A turn

    def send(self, text: str) -> Generator[Event, None, None]:
        """Say something and get the reply as events.

        When the reply is stopped (`stop`, or by closing the iterator) what was said so far is the turn. When
        anything fails, state and window are those before the turn.

        Raises:
            StateError: the turn left numbers in the state that are not finite; it was undone.
        """
        yield from self._turn(text, replying=True)

    def ingest(self, text: str) -> Generator[Event, None, None]:
        """Read a message into the memory without replying to it; its events are `Ingested` and `TurnFinished`.

        Raises:
            StateError: as for `send`.
        """
        yield from self._turn(text, replying=False)

    @torch.inference_mode()
    def _turn(self, text: str, replying: bool) -> Generator[Event, None, None]:
        turns, state = self._window.copy_turns(), self._state
        if self.memory is not None and state is not None:
            self.memory.state = state
        self._stop = False
        self._trace.begin()
        reply = _Reply(Detokenizer(self.tokenizer))
        try:
            yield from self._read(text, reply)
            if replying:
                try:
                    yield from self._speak(reply)
                except GeneratorExit:
                    self._finish(reply, turns, state)
                    raise
            yield self._finish(reply, turns, state)
        except BaseException:
            if not reply.finished:
                self._window.restore(turns)
                self._state = state
            raise

    def _read(self, text: str, reply: _Reply) -> Iterator[Event]:
        """Feed the user's message, in chunks."""
        began = time.monotonic()
        header = self.form.following if self._window.turns else []
        said = self.form.text(text)
        total = len(header) + len(said) + len(self.form.answer)
        self._window.begin_turn()
        segments = self._segmenter()
        done = 0
        for part, is_said in ((header, False), (said, True), (self.form.answer, False)):
            if is_said:
                segments.begin()
            for piece in segments.split(part) if is_said else chunks(part, self._window.chunk):
                reply.evicted |= self._window.make_room(len(piece) + self._reserve())
                last = part is self.form.answer and done + len(piece) == total
                reply.logits = self._feed(piece, is_said, [False] * (len(piece) - 1) + [last], segments, reply)
                done += len(piece)
                yield Ingested(done, total)
            if is_said:
                with self._trace.watching():
                    segments.end()
        reply.prompt_tokens = total
        reply.prompt_seconds = time.monotonic() - began

    def _feed(
        self,
        ids: list[int],
        written: bool,
        reads: list[bool],
        segments: Segmenter,
        reply: _Reply,
        direction: Direction | None = None,
    ) -> Tensor:
        with self._trace.watching():
            logits = self._window.feed(ids, [written] * len(ids), reads, self._mode_for, direction)
            if written:
                self._trace.fed(ids)
                segments.fed(ids)
        reply.written += len(ids) if written and self._mode == "on" else 0
        return logits

    def _speak(self, reply: _Reply) -> Iterator[Event]:
        """Make the reply; every token of it is fed once, and written where the message before it told something."""
        written = not self._reply_floor or self._trace.widest > self._reply_floor
        segments = self._segmenter()
        segments.begin()
        limit = self.sampling.limit
        reply.stopped = "length"
        began = time.monotonic()
        try:
            while reply.tokens < limit:
                if self._stop:
                    reply.stopped = "interrupted"
                    break
                assert reply.logits is not None
                token = self._sampler.draw(lambda: self._window.ids, reply.logits)
                if token in self.form.stops:
                    reply.stopped = "stop"
                    break
                # Fed before it is shown: what a user has seen is in the state, wherever the reply is cut off.
                reply.evicted |= self._window.make_room(1)
                reply.logits = self._feed([token], written, [True], segments, reply, self._direction(written))
                reply.tokens += 1
                if piece := reply.text.add(token):
                    yield TextChunk(piece)
            if piece := reply.text.finish():
                yield TextChunk(piece)
        except GeneratorExit:
            reply.stopped = "interrupted"
            reply.text.finish()
            raise
        finally:
            with self._trace.watching():
                segments.end()
            reply.reply_seconds = time.monotonic() - began

    def _finish(self, reply: _Reply, turns: list[list[int]], state: MemoryState | None) -> TurnFinished:
        """Take the state out of the memory and account for the turn."""
        change = 0.0
        if self.memory is not None and state is not None and self._mode == "on":
            after = self.memory.state.clone()
            if not after.is_finite():
                raise StateError("this turn left NaN or infinite numbers in the memory; it was undone")
            change = change_between(state.matrices(), after.matrices())
            self._state, self.state_before = after, state
            self.writes = self._trace.finish() if self._keeps_trace else None
        self._undo = (turns, state)
        reply.finished = True
        self.last = TurnFinished(
            reply=reply.text.text,
            stopped=reply.stopped,
            prompt_tokens=reply.prompt_tokens,
            reply_tokens=reply.tokens,
            written_tokens=reply.written,
            prompt_seconds=reply.prompt_seconds,
            reply_seconds=reply.reply_seconds,
            window_tokens=len(self._window),
            context=self.context,
            evicted=reply.evicted,
            state_change=change,
        )
        return self.last

    # Modes

    def _mode_for(self, written: Tensor | None, reads: Tensor) -> AbstractContextManager[None]:
        if self.memory is None:
            return nullcontext()
        if self._mode == "off":
            return self.memory.disabled()
        if self._mode == "on" and written is not None:
            return self.memory.writing(written=written, reads=reads)
        return self.memory.reading(reads=reads)

    def _direction(self, written: bool) -> Direction | None:
        """What a token of a reply does; None where it can't be replayed: a segment's tokens are gathered in a sum."""
        if self.memory is None or self._mode == "off":
            return "off"
        if self._mode == "read" or not written:
            return "read"
        return None if self.memory.config.writes_segments else "write"

    def _frozen(self) -> AbstractContextManager[None]:
        return nullcontext() if self.memory is None else self.memory.disabled()

    def _segmenter(self) -> Segmenter:
        writes = self._mode == "on" and self.memory is not None and self.memory.config.writes_segments
        return Segmenter(self.memory if writes else None, self.tokenizer, self._window.chunk)

    def _reserve(self) -> int:
        """Room kept for a reply, so that one turn of ordinary length does not evict twice."""
        return min(self.sampling.limit, self.context // 4)


class _Reply:
    """What a turn has come to so far."""

    def __init__(self, text: Detokenizer) -> None:
        self.text = text
        self.logits: Tensor | None = None
        self.stopped: Literal["stop", "length", "interrupted"] = "stop"
        self.tokens = self.written = self.prompt_tokens = 0
        self.prompt_seconds = self.reply_seconds = 0.0
        self.evicted = self.finished = False
