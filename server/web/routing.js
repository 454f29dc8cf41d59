// SPDX-License-Identifier: Apache-2.0
//
// The experts panel: what the router did with the tokens of the last reply. One row for each MoE
// layer, one column for each expert, darker for more picks; below, what was dropped, and where.

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

const percent = (part, all) => `${(all ? (100 * part) / all : 0).toFixed(1)} %`;
const sum = (list) => list.reduce((a, b) => a + b, 0);

function header(text, scope) {
  const cell = make("th", text);
  cell.scope = scope;
  return cell;
}

function heatMap({ layers, experts, picks }, dropped) {
  const table = make("table", undefined, "heat");
  table.setAttribute("aria-label", "Picks by layer and expert");
  table.classList.toggle("wide", experts > 10);
  const top = table.createTHead().insertRow();
  top.append(header("Layer", "col"));
  for (let e = 0; e < experts; e++) {
    const cell = header(undefined, "col");
    cell.append(make("span", String(e), e % 4 ? "" : "fourth"));
    top.append(cell);
  }
  const most = Math.max(1, ...picks.flat());
  const body = table.createTBody();
  layers.forEach((layer, l) => {
    const row = body.insertRow();
    row.append(header(String(layer), "row"));
    picks[l].forEach((n, e) => {
      const cell = row.insertCell();
      const lost = dropped.by_expert[l][e];
      cell.style.setProperty("--share", n / most);
      cell.classList.toggle("lost", lost > 0);
      const share = percent(n, sum(picks[l]));
      cell.title = `Layer ${layer}, expert ${e}: ${n} picks (${share}), ${lost} dropped`;
      cell.append(make("span", String(n)));
    });
  });
  return table;
}

function busiest({ layers, experts, picks }) {
  const all = layers.map((layer, l) => {
    const n = Math.max(...picks[l]);
    return { layer, n, expert: picks[l].indexOf(n), share: n / (sum(picks[l]) || 1) };
  });
  const top = all.reduce((a, b) => (b.share > a.share ? b : a));
  return `The busiest is expert ${top.expert} of layer ${top.layer} with ${percent(top.share, 1)} of its ` +
    `layer's picks; an even share is ${percent(1, experts)}.`;
}

function drops(caption, first, buckets) {
  const table = make("table", undefined, "drops");
  table.append(make("caption", caption));
  const top = table.createTHead().insertRow();
  top.append(...[first, "Picks", "Dropped", "Share"].map((t) => header(t, "col")));
  const body = table.createTBody();
  for (const b of buckets) {
    const row = body.insertRow();
    const end = b.last === null ? " and on" : b.last === b.first ? "" : ` to ${b.last}`;
    row.append(header(b.first + end, "row"));
    for (const value of [b.picks, b.dropped]) row.append(make("td", String(value)));
    const share = make("td", percent(b.dropped, b.picks), "share");
    share.style.setProperty("--share", b.picks ? b.dropped / b.picks : 0);
    row.append(share);
  }
  return table;
}

export function showRouting(element, facts) {
  try {
    const { routing, dropped } = facts;
    const share = percent(dropped.total, dropped.picks);
    element.replaceChildren(
      make("p", "Picks by layer (rows) and expert (columns): the stronger the colour, the more."),
      heatMap(routing, dropped),
      make("p", `${routing.tokens} tokens, prompt and reply. ${busiest(routing)}`),
      make("p", dropped.total
        ? `${dropped.total} of ${dropped.picks} picks were dropped (${share}); outlined above.`
        : `None of the ${dropped.picks} picks was dropped.`),
      drops("Drops by position in the chat", "Position", dropped.by_position),
      drops("Drops by turn of the chat", "Turn", dropped.by_turn),
    );
  } catch { // nothing recorded, or a file that was changed by hand
    element.replaceChildren(make("p", "Nothing is recorded for the last reply of this chat."));
  }
}
