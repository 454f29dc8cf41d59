// SPDX-License-Identifier: Apache-2.0
//
// The element of one message: what was said, a line of facts below a reply, and what can be done
// with it. `on` has the page's own actions: edit(message, text), regenerate().
import { copyButton, render } from "./markdown.js";

function button(label, name, action) {
  const element = document.createElement("button");
  element.type = "button";
  element.textContent = label;
  element.className = name;
  element.addEventListener("click", action);
  return element;
}

function part(parent, tag, className) {
  const element = document.createElement(tag);
  element.className = className;
  parent.append(element);
  return element;
}

// "13 tokens · 210 tokens/s · first after 0.05 s · prompt 81, of which cached 64"
function factsLine({ facts = {}, finish }) {
  const { tokens, about, rate, first, prompt, cached } = facts;
  const n = (value, digits = 0) => Number(value).toFixed(digits);
  const said = [];
  if (tokens >= 0) said.push(`${about ? "about " : ""}${n(tokens)} token${tokens === 1 ? "" : "s"}`);
  if (rate > 0) said.push(`${n(rate, rate < 10 ? 1 : 0)} tokens/s`);
  if (first >= 0) said.push(`first after ${n(first, 2)} s`);
  if (prompt >= 0) said.push(`prompt ${n(prompt)}${cached > 0 ? `, of which cached ${n(cached)}` : ""}`);
  if (finish === "length") said.push("cut off at the limit of tokens");
  if (finish === "stopped") said.push("stopped");
  return said.join(" · ");
}

// Grows with its text.
export function fit(field) {
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`;
}

export class MessageView {
  constructor(message, on) {
    this.message = message;
    this.on = on;
    this.element = document.createElement("article");
    this.element.className = `message ${message.role}`;
    const head = part(this.element, "h2", "unseen");
    head.textContent = message.role === "user" ? "You" : "Reply";
    this.text = part(this.element, "div", "text");
    const mine = message.role === "user";
    this.error = mine || part(this.element, "p", "error");
    const foot = mine ? this.element : part(this.element, "div", "foot");
    this.facts = mine || part(foot, "p", "facts");
    this.actions = part(foot, "div", "actions");
    this.show();
  }

  // live: the reply still grows. last: nothing follows this message.
  show({ live = false, last = false } = {}) {
    const m = this.message;
    this.element.classList.toggle("live", live);
    this.element.setAttribute("aria-busy", String(live));
    if (m.role === "user") {
      this.text.textContent = m.content;
      const edit = button("Edit", "edit", () => this.edit());
      this.actions.replaceChildren(copyButton(() => m.content, "Copy message"), edit);
      return;
    }
    render(this.text, m.content);
    this.facts.textContent = live && !m.content ? "Waiting for the server" : factsLine(m);
    this.error.textContent = m.error ?? "";
    this.actions.replaceChildren();
    if (live) return;
    if (m.content) this.actions.append(copyButton(() => m.content, "Copy reply"));
    if (!last) return;
    const label = m.error ? "Try again" : "Regenerate";
    this.actions.append(button(label, "regenerate", () => this.on.regenerate()));
  }

  edit() {
    const field = document.createElement("textarea");
    field.value = this.message.content;
    field.setAttribute("aria-label", "Edit your message");
    const send = () => field.value.trim() && this.on.edit(this.message, field.value.trim());
    const leave = () => {
      this.show();
      this.actions.querySelector(".edit").focus();
    };
    field.addEventListener("input", () => fit(field));
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") leave();
      else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send();
      else return;
      event.preventDefault();
      event.stopPropagation();
    });
    this.text.replaceChildren(field);
    this.actions.replaceChildren(button("Send", "save", send), button("Cancel", "cancel", leave));
    fit(field);
    field.focus();
  }
}
