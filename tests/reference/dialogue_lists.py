# SPDX-License-Identifier: Apache-2.0
"""Word lists of the dialogue generator: the values that dialogues are filled with.

Only data and two small helpers live here, so that the skills (dialogue_skills.py) stay readable.
Every list is a tuple in a fixed order: the generator's seed decides what is drawn from it.
"""


def words(text):
    """A tuple of the whitespace-separated words of `text`; `_` inside a word stands for a space."""
    return tuple(w.replace("_", " ") for w in text.split())


def article(word):
    """`word` with its indefinite article, by its first letter (the lists hold no exceptions)."""
    return ("an " if word[0].lower() in "aeiou" else "a ") + word


NAMES = words("""
    Ada Adam Aisha Akira Alan Alex Alice Amara Amir Amy Ana Andre Anna Anton Ari Arun Astrid Ayla Bea Ben Bianca
    Bruno Carla Carlos Chen Chloe Clara Daniel Dara David Diego Elena Eli Elif Ella Emil Emma Erik Eva Farah Felix
    Fiona Frank Freya Gina Grace Greta Hana Hans Hassan Hugo Ida Ines Ingrid Iris Isaac Ivan Jack Jana Jin Joana
    John Jonas Jose Julia Kai Karim Kate Kenji Lara Laura Leah Lena Leo Liam Lily Lina Lucas Luis Luna Maria Mark
    Marta Max Maya Mei Mia Milan Mina Mohan Nadia Nina Noah Nora Olga Oliver Omar Oscar Otto Paul Pedro Peter Petra
    Priya Rafael Raj Rita Robin Rosa Ruth Sam Samir Sara Selma Simon Sofia Sven Tara Theo Thomas Tim Tomas Uma Vera
    Victor Wei Yara Yuki Yusuf Zara Zoe""")
CITIES = words("""
    Accra Amman Athens Bangkok Barcelona Basel Beijing Bergen Berlin Bilbao Bogota Boston Bristol Brussels Cairo
    Chicago Cork Dakar Delhi Dublin Florence Geneva Genoa Ghent Glasgow Hamburg Hanoi Helsinki Jakarta Krakow Kyoto
    Lagos Lahore Lima Lisbon London Lyon Madrid Malaga Manila Melbourne Milan Montreal Mumbai Munich Nairobi Naples
    Osaka Oslo Ottawa Paris Porto Prague Quito Riga Rome Rotterdam Santiago Seattle Seoul Seville Sofia Sydney
    Tallinn Tokyo Toronto Tunis Turin Utrecht Valencia Vienna Vilnius Warsaw York Zagreb Zurich""")
COLOURS = words("""red blue green yellow orange purple pink brown black white grey teal gold silver turquoise
    violet crimson beige indigo lilac""")
JOBS = words("""
    baker nurse teacher pilot farmer gardener painter plumber carpenter driver chef doctor lawyer librarian engineer
    electrician dentist tailor waiter singer dancer writer builder cleaner fisherman postman shepherd potter florist
    barber cashier translator architect astronomer optician editor actor artist potter vet mechanic musician""")
FOODS = words("""
    pizza pasta soup rice bread salad cheese curry sushi noodles pancakes lasagna porridge omelette dumplings tacos
    stew risotto falafel couscous toast burgers waffles popcorn chocolate honey""")
FRUITS = words("""apple pear plum cherry banana mango lemon grape peach melon kiwi fig lime papaya apricot
    raspberry strawberry blueberry""")
ANIMALS = words("""
    owl fox bear wolf lion tiger otter badger hedgehog dolphin whale penguin eagle swan duck goose frog toad camel
    giraffe zebra monkey panda koala squirrel beaver salmon crab spider bee ant butterfly mouse sheep goat cow pig
    donkey chicken deer seal""")
DRINKS = words("tea coffee milk water juice lemonade cocoa cider")
SPORTS = words("tennis football swimming running cycling skiing rowing climbing judo golf hockey basketball chess")
SEASONS = words("spring summer autumn winter")
HOBBIES = words("""painting reading knitting fishing gardening baking hiking sailing pottery photography dancing
    singing drawing sewing cooking running cycling astronomy origami chess""")
PET_KINDS = words("cat dog parrot rabbit hamster horse turtle goldfish")
PET_NAMES = words("""
    Biscuit Bella Bolt Bramble Bubbles Buddy Button Charlie Clover Coco Cookie Daisy Dusty Fluffy Ginger Hazel Honey
    Jasper Kiki Lucky Maple Marble Mango Milo Misty Miso Mochi Nibbles Nori Nutmeg Olive Pebble Pepper Pickle Pip
    Poppy Pumpkin Rex Rocky Rusty Sky Smokey Snowy Socks Sparky Spot Sunny Teddy Tiger Toffee Waffle Whiskers Willow
    Ziggy""")
PEOPLE = words("sister brother friend teacher neighbour mother father cousin boss")
THINGS = words("""
    apron arrow bag ball basket bell bicycle blanket boat book bottle bowl box bridge broom brush bucket button cake
    camera candle car card chair clock cloud coat coin compass cup desk door drum engine envelope feather fence
    flag flower flute fork garden gate glass glove guitar hammer hat house jacket jar kettle key kite knife ladder
    lamp lantern leaf letter lock map mirror mountain mug nail needle notebook oven paper pen pencil piano picture
    pillow plant plate pocket pot puzzle radio ribbon ring river rocket roof rope ruler sail scarf scissors shell
    ship shirt shoe shovel sock sofa spoon stamp star stone stool street string suitcase table tent ticket torch
    towel tower toy train tree trumpet umbrella vase violin wagon wallet wheel whistle window""")
PLAIN_WORDS = words("""
    able above again air alone answer autumn before begin below beside big bright brother busy calm careful child
    circle clean clear clever cold corner country curious daily dance dark daughter dinner dream early earth
    east easy empty evening every family fast father field fire first forest fresh friend future gentle giant gift
    give glad good great half happy heart heavy hello help hidden hill holiday home hope hour hundred idea island
    island kind kitchen laugh learn light listen little lucky lunch machine magic market middle minute model moon
    morning mother music narrow nature never new night noise north number ocean often open orange other party path
    peace people planet play please pretty proud quick quiet rain ready rich river round sand school science season
    secret shadow short silent silver simple sister sky sleep slow small smile smooth snow soft song sound south
    special spring square storm story strange strong student summer sun sweet tall teacher thank thunder time tiny
    today together tomorrow travel under valley village voice walk warm water weather week welcome west wide wild
    wind winter wise wonder wood word work world yellow yesterday young""")


def _unique(*lists):
    seen = {}
    for one in lists:
        for word in one:
            if word.isalpha() and word.islower() and 2 < len(word) <= 9:
                seen[word] = True
    return tuple(seen)


# What can be spelled, reversed and measured: a closed list, so that its letters can be learned.
SPELL_WORDS = _unique(THINGS, PLAIN_WORDS, ANIMALS, FRUITS, COLOURS, FOODS, JOBS, DRINKS)
LIST_ITEMS = _unique(THINGS, ANIMALS, FRUITS)

# language: (hello, thank you, goodbye)
LANGUAGES = {
    "English": ("Hello", "Thank you", "Goodbye"),
    "French": ("Bonjour", "Merci", "Au revoir"),
    "Spanish": ("Hola", "Gracias", "Adiós"),
    "German": ("Guten Tag", "Danke", "Auf Wiedersehen"),
    "Italian": ("Ciao", "Grazie", "Arrivederci"),
    "Portuguese": ("Olá", "Obrigado", "Adeus"),
    "Dutch": ("Hallo", "Dank je", "Tot ziens"),
    "Swedish": ("Hej", "Tack", "Hej då"),
    "Finnish": ("Hei", "Kiitos", "Näkemiin"),
    "Polish": ("Cześć", "Dziękuję", "Do widzenia"),
    "Turkish": ("Merhaba", "Teşekkürler", "Güle güle"),
    "Swahili": ("Jambo", "Asante", "Kwaheri"),
    "Greek": ("Γεια σας", "Ευχαριστώ", "Αντίο"),
    "Ukrainian": ("Привіт", "Дякую", "До побачення"),
    "Japanese": ("こんにちは", "ありがとう", "さようなら"),
    "Chinese": ("你好", "谢谢", "再见"),
}

_STARTS = words("b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t tr v w z a e i o u")
_MIDDLES = words("a e i o u ai ea oo an el in or ur a e i o")
_ENDS = words("n r s l m t x nd ck sh na ra ta vi lo mi ko so la no")


def made_up_word(rng):
    """A pronounceable word that stands in no list: copying it back needs reading, not memory."""
    syllables = rng.choice((1, 2, 2, 2, 3))
    out = "".join(rng.choice(_STARTS) + rng.choice(_MIDDLES) for _ in range(syllables))
    return out + rng.choice(_ENDS)
