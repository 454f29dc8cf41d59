// SPDX-License-Identifier: Apache-2.0
//
// The page itself: which chat is open, what is being generated, and what each key and button does.
// Several chats may wait for replies at once; each reply belongs to its chat, shown or not.
import * as api from "./api.js";
import { fit, MessageView } from "./messages.js";
import { showRouting } from "./routing.js";
import * as store from "./store.js";

const $ = (id) => document.getElementById(id);

const NUMBERS = ["temperature", "top_p", "max_tokens", "seed"]; // settings that go with a request

const chats = new Map(store.allChats().map((chat) => [chat.id, chat])); // id -> chat
const running = new Map(); // id of a chat -> AbortController of the reply it waits for
const settings = store.loadSettings();
let current = store.newChat(); // kept once something is said in it
let views = []; // of current's messages
let served = []; // models

// ---- what is shown

const announce = (text) => ($("announce").textContent = text); // for who hears the page
const notice = (text) => ($("notice").textContent = text); // for everybody
const sorted = () => [...chats.values()].sort((a, b) => b.updated - a.updated);
const titleOf = (chat) => chat.title || "New chat";

function showList() {
  $("chats").replaceChildren(...sorted().map((chat) => {
    const item = document.createElement("li");
    const open = document.createElement("button");
    const drop = document.createElement("button");
    open.className = "chat";
    open.textContent = titleOf(chat);
    if (chat.id === current.id) open.setAttribute("aria-current", "true");
    open.addEventListener("click", () => openChat(chat));
    drop.className = "drop quiet";
    drop.textContent = "✕";
    drop.setAttribute("aria-label", `Delete the chat ${titleOf(chat)}`);
    drop.addEventListener("click", () => deleteChat(chat));
    item.classList.toggle("running", running.has(chat.id));
    item.append(open, drop);
    return item;
  }));
}

function showState() {
  const busy = running.has(current.id);
  $("title").textContent = titleOf(current);
  document.title = current.title ? `${current.title} · openmoed` : "openmoed";
  $("send").hidden = busy;
  $("stop").hidden = !busy;
  const reply = current.messages.findLast((m) => m.role === "assistant");
  if (!$("routing").hidden) showRouting($("routing-facts"), reply?.routing);
}

function showMessages() {
  const on = { edit: editMessage, regenerate };
  const busy = running.has(current.id);
  views = current.messages.map((m) => new MessageView(m, on));
  views.at(-1)?.show({ live: busy, last: true });
  $("log").replaceChildren(...views.map((v) => v.element));
  if (!views.length) {
    const empty = document.createElement("p");
    empty.className = "empty";
    empty.textContent = "What shall we talk about?";
    $("log").append(empty);
  }
  toEnd();
}

function showAll() {
  showList();
  showMessages();
  showState();
}

// On a phone the keyboard would cover what was just opened.
const focusInput = () => matchMedia("(pointer: coarse)").matches || $("input").focus();
const toEnd = () => ($("log").scrollTop = $("log").scrollHeight);
const atEnd = () => $("log").scrollHeight - $("log").scrollTop - $("log").clientHeight < 60;

function openChat(chat) {
  current = chat;
  closeSide();
  showAll();
  focusInput();
}

function keep(chat) {
  chats.set(chat.id, chat);
  if (!store.saveChat(chat)) notice("This browser has no room left for chats. Export and delete some.");
}

// ---- a reply

function requestFor(chat) {
  const messages = chat.messages.filter((m) => m.content).map(({ role, content }) => ({ role, content }));
  if (settings.system) messages.unshift({ role: "system", content: settings.system });
  const body = { model: settings.model ?? served[0]?.id, messages, stream: true };
  body.stream_options = { include_usage: true };
  for (const name of NUMBERS) if (settings[name] != null) body[name] = settings[name];
  if (settings.return_routing) body.return_routing = true;
  return body;
}

// Takes what one chunk says into the message; `clock` knows when tokens came.
function take(message, chunk, clock) {
  const choice = chunk.choices[0];
  const now = performance.now();
  if (choice?.delta.content) {
    message.content += choice.delta.content;
    message.facts.tokens++;
    clock.first ??= now;
    clock.last = now;
    message.facts.first = (clock.first - clock.began) / 1000;
  }
  if (choice?.finish_reason) message.finish = choice.finish_reason;
  if (chunk.openmoed) message.routing = chunk.openmoed;
  if (chunk.usage) {
    const { completion_tokens: tokens, prompt_tokens: prompt, prompt_tokens_details: details } = chunk.usage;
    Object.assign(message.facts, { tokens, prompt, cached: details?.cached_tokens, about: false });
  }
  // From the question on: tokens that arrive in one packet would otherwise seem to have taken no time.
  if (clock.last) message.facts.rate = message.facts.tokens / ((clock.last - clock.began) / 1000);
}

async function receive(chat, message, signal, show) {
  const clock = { began: performance.now() };
  for await (const chunk of api.chat(requestFor(chat), signal)) {
    take(message, chunk, clock);
    show();
  }
}

async function reply(chat) {
  const controller = new AbortController();
  const message = { role: "assistant", content: "", facts: { tokens: 0, about: true } };
  let drawn = 0; // the frame that will show what came
  const draw = () => {
    drawn = 0;
    if (chat !== current || running.get(chat.id) !== controller) return;
    const follow = atEnd();
    views.at(-1).show({ live: true });
    if (follow) toEnd();
  };
  chat.updated = Date.now();
  keep(chat);
  chat.messages.push(message);
  running.set(chat.id, controller);
  if (chat === current) showAll();
  announce("Waiting for the reply.");
  try {
    if (!served.length) await loadModels();
    await receive(chat, message, controller.signal, () => (drawn ||= requestAnimationFrame(draw)));
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else message.error = error.message;
    if (error.status === 401) askKey(error.message, () => chat === current && regenerate());
  }
  if (running.get(chat.id) !== controller) return; // the chat is gone, or asks for another reply
  running.delete(chat.id);
  if (!message.content) delete message.facts;
  keep(chat);
  finishReply(chat, message);
}

function finishReply(chat, message) {
  announce(message.error ?? (message.finish === "stopped" ? "Stopped." : `Reply: ${message.content}`));
  showList();
  if (chat !== current) return;
  const follow = atEnd();
  views.at(-1).show({ last: true });
  showState();
  if (document.activeElement === document.body) focusInput(); // the button that had it is gone
  if (follow) toEnd();
}

function send(text) {
  if (!text || running.has(current.id)) return;
  dropEmptyReply(current);
  current.title ||= text.replace(/\s+/g, " ").replace(/^(.{60}).+/, "$1…");
  current.messages.push({ role: "user", content: text });
  reply(current);
}

// A reply that failed before its first word is no part of the chat.
function dropEmptyReply(chat) {
  const last = chat.messages.at(-1);
  if (last?.role === "assistant" && !last.content) chat.messages.pop();
}

function stop() {
  running.get(current.id)?.abort();
}

function regenerate() {
  if (running.has(current.id) || !current.messages.length) return;
  if (current.messages.at(-1).role === "assistant") current.messages.pop();
  reply(current);
}

function editMessage(message, text) {
  stop();
  running.delete(current.id);
  current.messages.length = current.messages.indexOf(message);
  if (!current.messages.length) current.title = "";
  send(text);
  focusInput();
}

// ---- chats: new, delete, export, import

function newChat() {
  openChat(store.newChat());
}

function confirmed(question, action) {
  $("confirm-text").textContent = question;
  showDialog($("confirm"), (answer) => answer === "yes" && action());
}

function forget(chat) {
  running.get(chat.id)?.abort();
  running.delete(chat.id);
  chats.delete(chat.id);
  store.deleteChat(chat.id);
}

function deleteChat(chat) {
  confirmed(`Delete the chat “${titleOf(chat)}”?`, () => {
    forget(chat);
    if (chat === current) current = sorted()[0] ?? store.newChat();
    showAll();
  });
}

function deleteAll() {
  confirmed(`Delete all ${chats.size} chats?`, () => {
    $("settings").close();
    [...chats.values()].forEach(forget);
    newChat();
  });
}

function exportChats() {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([store.exportChats()], { type: "application/json" }));
  link.download = `openmoed-chats-${new Date().toISOString().slice(0, 10)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function importChats() {
  const found = store.importChats(await $("import-file").files[0].text());
  $("import-file").value = "";
  (found ?? []).forEach(keep);
  $("settings").close();
  notice(found ? "" : "This file holds no chats.");
  if (found?.length) openChat(found[0]);
}

// ---- dialogs and panels

function showDialog(dialog, then) {
  dialog.returnValue = "";
  dialog.showModal();
  dialog.addEventListener("close", () => then?.(dialog.returnValue), { once: true });
}

function askKey(why, then) {
  if ($("key-dialog").open) return;
  $("key-why").textContent = why;
  $("key-asked").value = "";
  showDialog($("key-dialog"), (answer) => {
    if (answer !== "yes") return;
    store.setApiKey($("key-asked").value);
    then();
  });
  $("key-asked").focus();
}

function openSettings() {
  for (const name of [...NUMBERS, "system"]) $(name).value = settings[name] ?? "";
  const choices = served.map((m) => new Option(m.id, m.id, false, m.id === settings.model));
  $("model-choice").replaceChildren(...choices);
  $("theme").value = localStorage.getItem("openmoed.theme") ?? "";
  $("key").value = store.apiKey();
  showDialog($("settings"), () => {
    for (const name of NUMBERS)
      if ($(name).validity.valid) settings[name] = $(name).value ? $(name).valueAsNumber : undefined;
    settings.system = $("system").value.trim() || undefined;
    if ($("key").value !== store.apiKey()) {
      store.setApiKey($("key").value);
      loadModels().catch(() => {});
    }
    store.saveSettings(settings);
  });
}

function setTheme(theme) {
  if (theme) localStorage.setItem("openmoed.theme", theme);
  else localStorage.removeItem("openmoed.theme");
  document.documentElement.dataset.theme = theme;
}

function toggleRouting(open = $("routing").hidden) {
  $("routing").hidden = !open;
  $("routing-open").setAttribute("aria-pressed", String(open));
  showState();
  $(open ? "return-routing" : "routing-open").focus();
}

function openSide() {
  document.body.classList.add("side-open");
  $("side-open").setAttribute("aria-expanded", "true");
  $("side-close").focus();
}

function closeSide() {
  if (!document.body.classList.contains("side-open")) return false;
  document.body.classList.remove("side-open");
  $("side-open").setAttribute("aria-expanded", "false");
  $("side-open").focus();
  return true;
}

async function loadModels() {
  served = await api.models();
  if (!served.some((m) => m.id === settings.model)) delete settings.model;
  notice("");
  const model = served.find((m) => m.id === settings.model) ?? served[0];
  $("model").textContent = model?.id ?? "no model";
  if (model?.max_model_len) $("model").title = `Context: ${model.max_model_len} tokens`;
}

function firstLook() {
  loadModels().catch((error) => {
    notice(error.message);
    if (error.status === 401) askKey(error.message, firstLook);
  });
}

// ---- keys and buttons

function step(by) {
  const list = sorted();
  const at = list.indexOf(current);
  const next = list[at < 0 ? 0 : at + by];
  if (next) openChat(next);
}

const SHORTCUTS = {
  KeyN: newChat,
  KeyK: () => step(-1),
  KeyJ: () => step(1),
  ArrowUp: () => views.findLast((v) => v.message.role === "user")?.edit(),
  KeyR: regenerate,
  KeyI: () => $("input").focus(),
  KeyX: () => toggleRouting(),
  KeyS: openSettings,
  Slash: () => showDialog($("shortcuts")),
};

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return; // the browser's own keys
  if (event.key === "Escape") {
    if (closeSide()) return;
    if (running.has(current.id)) stop();
    else if (!$("routing").hidden) toggleRouting(false);
    return;
  }
  const action = event.altKey && !event.ctrlKey && !event.metaKey && SHORTCUTS[event.code];
  if (!action) return;
  event.preventDefault();
  action();
});

$("input").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  $("composer").requestSubmit();
});

$("input").addEventListener("input", () => fit($("input")));

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running.has(current.id)) return;
  send($("input").value.trim());
  $("input").value = "";
  fit($("input"));
});

const clicks = {
  "stop": stop,
  "key-cancel": () => $("key-dialog").close(),
  "new-chat": newChat,
  "side-open": openSide,
  "side-close": closeSide,
  "shade": closeSide,
  "shortcuts-open": () => showDialog($("shortcuts")),
  "settings-open": openSettings,
  "routing-open": () => toggleRouting(),
  "routing-close": () => toggleRouting(false),
  "export": exportChats,
  "import": () => $("import-file").click(),
  "delete-all": deleteAll,
};
for (const [id, action] of Object.entries(clicks)) $(id).addEventListener("click", action);

$("import-file").addEventListener("change", importChats);
$("theme").addEventListener("change", () => setTheme($("theme").value));
$("model-choice").addEventListener("change", () => {
  settings.model = $("model-choice").value;
  $("model").textContent = settings.model;
});
$("return-routing").checked = Boolean(settings.return_routing);
$("return-routing").addEventListener("change", () => {
  settings.return_routing = $("return-routing").checked;
  store.saveSettings(settings);
});

// Another page of ours changed a chat: take it, unless this one is writing to it.
addEventListener("storage", (event) => {
  if (!store.isChatEntry(event.key)) return;
  const stored = new Map(store.allChats().map((chat) => [chat.id, chat]));
  for (const id of running.keys()) if (chats.has(id)) stored.set(id, chats.get(id));
  chats.clear();
  for (const [id, chat] of stored) chats.set(id, chat);
  if (chats.has(current.id)) current = chats.get(current.id);
  showAll();
});

// A page that goes away keeps what came of its replies so far.
addEventListener("pagehide", () => {
  for (const id of running.keys()) {
    const last = chats.get(id)?.messages.at(-1);
    if (last) last.finish = "stopped";
    if (chats.has(id)) store.saveChat(chats.get(id));
  }
});

current = sorted()[0] ?? current;
showAll();
firstLook();
focusInput();
