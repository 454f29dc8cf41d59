#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Puts the libraries of the page, from Debian's packages, into one script, and their licences into one text.
# Of highlight.js's languages it takes the common ones: all of them would be four times the rest of the page.
#   server/web/libraries.sh FOLDER     writes FOLDER/libraries.js and FOLDER/licenses.txt
set -eu
to=$1
languages="bash cpp cs css diff dockerfile go haskell http ini java javascript json kotlin lua makefile markdown \
nginx perl php plaintext powershell python r ruby rust scala shell sql swift typescript xml yaml"
js=/usr/share/javascript
wanted=$(printf '%s' "$languages" | tr -s ' ' '|')
{
    grep -v '^//# sourceMappingURL' $js/marked/marked.min.js
    echo
    # Debian 12's node-dompurify (2.4.1+dfsg+~2.4.0-2+deb12u1) reads a variable of this name where there is none, in a
    # check of the root's depth, and so throws on every call. The real check, node by node, is elsewhere and works.
    echo 'const shadowNode = Object.freeze({});'
    grep -v '^//# sourceMappingURL' /usr/share/nodejs/dompurify/dist/purify.min.js
    echo
    echo '/*! highlight.js | (c) Ivan Sagalaev and other contributors | BSD 3-clause */'
    sed 's/hljs\.registerLanguage("/\n&/g' $js/highlight.js/highlight.min.js |
        awk -v wanted="$wanted" '
            NR == 1 { print; next }
            { split($0, part, "\"") }
            part[2] ~ "^(" wanted ")$" { print; found++ }
            END { if (found != split(wanted, all, "|")) { print "libraries.sh: a language is missing" >"/dev/stderr"; exit 1 } }'
} >"$to/libraries.js"
for package in libjs-marked node-dompurify libjs-highlight.js; do
    echo "==== $package"
    echo
    cat "/usr/share/doc/$package/copyright"
    echo
done >"$to/licenses.txt"
