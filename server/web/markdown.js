// SPDX-License-Identifier: Apache-2.0
//
// Turns a reply into elements. Replies are not to be trusted: HTML in them is shown as text, what
// marked makes of the rest goes through DOMPurify, and the page's policy lets no other markup and no
// script in. Images would tell a third party who reads what, so they become links.
/* global marked, DOMPurify, hljs */

const MAX_HIGHLIGHTED = 50_000; // characters: colouring is not worth a page that stutters

const escaped = (text) => text.replace(/[&<>"']/g, (c) => `&#${c.charCodeAt(0)};`);

marked.use({
  headerIds: false,
  mangle: false,
  renderer: {
    html: escaped,
    image: (href, _title, text) => `<a href="${escaped(href ?? "")}">${text || "image"}</a>`,
    heading: (text, level) => `<h${Math.min(level + 2, 6)}>${text}</h${Math.min(level + 2, 6)}>`,
    checkbox: (checked) => (checked ? "☑ " : "☐ "),
  },
});

const MARKUP = {
  RETURN_DOM_FRAGMENT: true,
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h3", "h4", "h5", "h6", "hr", "li", "ol",
    "p", "pre", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["href", "title", "class", "start", "align"],
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i, // of every attribute but
  ADD_URI_SAFE_ATTR: ["start", "align"],
};
const COLOURS = { RETURN_DOM_FRAGMENT: true, ALLOWED_TAGS: ["span"], ALLOWED_ATTR: ["class"] };

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch { // no clipboard on pages that came over plain HTTP from another machine
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
  }
}

export function copyButton(text, label) {
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Copy";
  button.setAttribute("aria-label", label);
  button.addEventListener("click", async () => {
    await copyText(text());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}

function dressCode(code) {
  const pre = code.parentElement;
  const language = /^language-(\S+)/.exec(code.className)?.[1] ?? "";
  const text = code.textContent;
  if (hljs.getLanguage(language) && text.length <= MAX_HIGHLIGHTED)
    code.replaceChildren(DOMPurify.sanitize(hljs.highlight(language, text, true).value, COLOURS));
  const box = document.createElement("div");
  const bar = document.createElement("div");
  const name = document.createElement("span");
  box.className = "code";
  bar.className = "bar";
  name.textContent = language || "text";
  bar.append(name, copyButton(() => text, "Copy code"));
  pre.tabIndex = 0; // it may scroll
  pre.replaceWith(box);
  box.append(bar, pre);
}

function block(token) {
  const element = document.createElement("div");
  element.append(DOMPurify.sanitize(marked.parser([token]), MARKUP));
  for (const code of element.querySelectorAll("pre > code")) dressCode(code);
  for (const link of element.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const table of element.querySelectorAll("table")) {
    const scroll = document.createElement("div");
    scroll.className = "scroll";
    scroll.tabIndex = 0;
    table.replaceWith(scroll);
    scroll.append(table);
  }
  return element;
}

const shown = new WeakMap(); // element -> the sources of its blocks

// Shows text in element. While a reply grows, the blocks before its end stay as they are, and with
// them what the reader has selected; unless links are defined, which may change any block.
export function render(element, text) {
  const all = marked.lexer(text);
  const tokens = all.filter((t) => t.type !== "space");
  const before = (Object.keys(all.links).length === 0 && shown.get(element)) || [];
  let same = 0;
  while (same < before.length && before[same] === tokens[same]?.raw) same++;
  while (element.children.length > same) element.lastElementChild.remove();
  element.append(...tokens.slice(same).map(block));
  shown.set(element, tokens.map((t) => t.raw));
}
