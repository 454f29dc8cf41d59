// SPDX-License-Identifier: Apache-2.0
//
// Runs before the first paint, so that a page set to dark never flashes white.
{
  const theme = localStorage.getItem("openmoed.theme");
  if (theme) document.documentElement.dataset.theme = theme;
}
