// SPDX-License-Identifier: Apache-2.0
//
// What the browser keeps: chats and settings in localStorage, one entry for each chat, so that two open
// pages don't overwrite each other's; the API key in sessionStorage, until the tab is closed.
//
// A chat: { id, title, updated, messages }. A message: { role, content } and, for a reply,
// facts (numbers for the line below it), finish, error (words), routing.

const PREFIX = "openmoed.chat.";
const SETTINGS = "openmoed.settings";

export const newId = () => Date.now().toString(36) + Math.random().toString(36).slice(2, 10);
export const newChat = () => ({ id: newId(), title: "", updated: Date.now(), messages: [] });

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

const text = (x) => (typeof x === "string" ? x : "");

// A file may hold anything: only what we know is taken, and only in the form we know.
function cleanMessage(m) {
  const kept = { role: m?.role === "assistant" ? "assistant" : "user", content: text(m?.content) };
  for (const name of ["finish", "error"]) if (text(m?.[name])) kept[name] = m[name];
  for (const name of ["facts", "routing"]) if (typeof m?.[name] === "object" && m[name]) kept[name] = m[name];
  return kept;
}

function cleanChat(c) {
  if (!Array.isArray(c?.messages)) return null;
  return {
    id: text(c.id) || newId(),
    title: text(c.title),
    updated: Number(c.updated) || Date.now(),
    messages: c.messages.map(cleanMessage),
  };
}

export function allChats() {
  const chats = [];
  for (let i = 0; i < localStorage.length; i++) {
    const name = localStorage.key(i);
    const chat = name.startsWith(PREFIX) && cleanChat(parse(localStorage.getItem(name)));
    if (chat) chats.push(chat);
  }
  return chats.sort((a, b) => b.updated - a.updated);
}

// False: there is no room left.
export function saveChat(chat) {
  try {
    localStorage.setItem(PREFIX + chat.id, JSON.stringify(chat));
    return true;
  } catch {
    return false;
  }
}

export const deleteChat = (id) => localStorage.removeItem(PREFIX + id);
export const isChatEntry = (name) => name === null || name.startsWith(PREFIX);

export const exportChats = () => JSON.stringify({ openmoed: 1, chats: allChats() }, null, 1);

// The chats of an exported file, under new names; null when it is none.
export function importChats(file) {
  const found = parse(file)?.chats;
  if (!Array.isArray(found)) return null;
  return found.map(cleanChat).filter(Boolean).map((chat) => ({ ...chat, id: newId() }));
}

export const loadSettings = () => parse(localStorage.getItem(SETTINGS)) ?? {};
export const saveSettings = (s) => localStorage.setItem(SETTINGS, JSON.stringify(s));

export const apiKey = () => sessionStorage.getItem("openmoed.key") ?? "";
export const setApiKey = (key) => sessionStorage.setItem("openmoed.key", key);
