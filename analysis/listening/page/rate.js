'use strict';
// One pair after the other. The page knows positions and opaque addresses of clips, and nothing else of them.

const SIDES = ['left', 'right'];
const NAMES = { left: 'first', right: 'second' };
const RETRY_MS = 2000;
const byId = (id) => document.getElementById(id);

let code = '';
let trial = null; // {position, trials}
let sounds = {}; // {left: Audio, right: Audio}
let heard = {}; // {left: true once it played to its end}
let chosenClip = 'left';
let choice = '';
let isSending = false;

function say(text) { byId('say').textContent = text; }
function complain(text) { byId('problem').textContent = text; }

// Sends until the server answers: a rater whose network fails, or whose server starts again, loses nothing.
async function send(path, body) {
  for (;;) {
    let reply;
    try {
      reply = await fetch(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
      const found = await reply.json();
      if (reply.ok) { complain(''); return found; }
      complain(found.error || `The server refused (${reply.status}).`);
      if (reply.status !== 507) return null;
    } catch (error) {
      complain('The computer that runs this test does not answer. Nothing is lost; trying again ...');
    }
    await new Promise((done) => setTimeout(done, RETRY_MS));
  }
}

function stop() { for (const side of SIDES) if (sounds[side]) sounds[side].pause(); }

function choose(side) {
  chosenClip = side;
  for (const each of SIDES) byId(`clip-${each}`).classList.toggle('is-chosen', each === side);
}

function showPlaying(side) {
  const isPlaying = sounds[side] && !sounds[side].paused && !sounds[side].ended;
  const button = byId(`play-${side}`);
  button.querySelector('.words').textContent = `${isPlaying ? 'Stop' : 'Play'} ${NAMES[side]}`;
  button.querySelector('.sign').textContent = isPlaying ? '\u25A0' : '\u25B6';
}

function play(side) {
  choose(side);
  const sound = sounds[side];
  if (!sound) return;
  if (!sound.paused && !sound.ended) { sound.pause(); return; }
  for (const each of SIDES) if (each !== side) sounds[each].pause();
  sound.play().catch((error) => {
    if (error.name !== 'AbortError') complain(`The ${NAMES[side]} recording cannot be played (${error.message}). Press play again.`);
  });
}

function showHeard() {
  for (const side of SIDES) byId(`heard-${side}`).textContent = heard[side] ? 'heard' : 'not heard yet';
  const isReady = SIDES.every((side) => heard[side]);
  for (const button of document.querySelectorAll('.answer')) button.disabled = !isReady;
  if (isReady && !choice) say('You have heard both. Please answer.');
}

function answerWith(given) {
  if (!SIDES.every((side) => heard[side])) { say('Please hear both recordings to their ends first.'); return; }
  choice = given;
  for (const button of document.querySelectorAll('.answer')) button.setAttribute('aria-pressed', String(button.dataset.choice === choice));
  byId('next').disabled = false;
  say({ left: 'Your answer: the first.', right: 'Your answer: the second.', none: 'Your answer: no difference.' }[choice]);
}

function load(side, address) {
  const sound = new Audio();
  sound.preload = 'auto';
  const bar = byId(`time-${side}`);
  bar.value = 0;
  sound.addEventListener('timeupdate', () => { bar.value = sound.duration ? sound.currentTime / sound.duration : 0; });
  for (const event of ['play', 'pause', 'ended']) sound.addEventListener(event, () => showPlaying(side));
  sound.addEventListener('ended', () => { if (sounds[side] === sound) { heard[side] = true; bar.value = 1; showHeard(); } });
  sound.addEventListener('error', () => {
    if (sounds[side] !== sound) return;
    complain(`The ${NAMES[side]} recording did not come; trying again ...`);
    setTimeout(() => { if (sounds[side] === sound) { load(side, address); showPlaying(side); } }, RETRY_MS);
  });
  sound.addEventListener('canplay', () => { if (byId('problem').textContent.includes('recording did not come')) complain(''); });
  sound.src = address;
  sounds[side] = sound;
}

function show(state) {
  stop();
  say('');
  byId('welcome').hidden = true;
  byId('trial').hidden = Boolean(state.is_finished);
  byId('end').hidden = !state.is_finished;
  sounds = {};
  if (state.is_finished) { trial = null; byId('end-title').focus(); return; }
  trial = state;
  heard = {};
  choice = '';
  byId('done').max = state.trials;
  byId('done').value = state.position;
  byId('count').textContent = `Pair ${state.position + 1} of ${state.trials}`;
  byId('next').disabled = true;
  for (const button of document.querySelectorAll('.answer')) button.setAttribute('aria-pressed', 'false');
  for (const side of SIDES) { load(side, state[side]); showPlaying(side); }
  showHeard();
  choose('left');
  byId('play-left').focus();
}

async function goOn() {
  if (!choice || isSending || !trial) return;
  isSending = true;
  stop();
  byId('next').disabled = true;
  const state = await send('/answer', { code, position: trial.position, choice });
  isSending = false;
  if (state) show(state); else byId('next').disabled = false;
}

byId('welcome').addEventListener('submit', async (event) => {
  event.preventDefault();
  code = byId('code').value.trim();
  const state = await send('/begin', { code });
  if (state) show(state);
});
for (const side of SIDES) {
  byId(`play-${side}`).addEventListener('click', () => play(side));
  byId(`play-${side}`).addEventListener('focus', () => choose(side));
}
for (const button of document.querySelectorAll('.answer')) button.addEventListener('click', () => answerWith(button.dataset.choice));
byId('next').addEventListener('click', goOn);

document.addEventListener('keydown', (event) => {
  if (!trial || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  const act = {
    ' ': () => play(chosenClip),
    ArrowLeft: () => { choose('left'); byId('play-left').focus(); },
    ArrowRight: () => { choose('right'); byId('play-right').focus(); },
    1: () => answerWith('left'), 2: () => answerWith('right'), 0: () => answerWith('none'),
    Enter: () => (choice ? goOn() : event.target.click && event.target.click()),
  }[event.key];
  // Space and Enter press the button that has the focus, as everywhere; Enter goes on once there is an answer.
  const isButton = event.target.tagName === 'BUTTON' && !event.target.classList.contains('play');
  if (!act || (isButton && (event.key === ' ' || (event.key === 'Enter' && !choice)))) return;
  event.preventDefault();
  act();
});
