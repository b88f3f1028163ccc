"""The facts that nestling learns: tables of pairs, a thing and what is true of it. Words only;
subjects.py turns them into questions.
"""


def _pairs(table: str) -> tuple[tuple[str, str], ...]:
    """`hot cold, north_pole ice` as pairs; an underscore stands for a space."""
    split = (entry.split() for entry in table.split(","))
    return tuple((left.replace("_", " "), right.replace("_", " ")) for left, right in split)


def _groups(table: str) -> tuple[tuple[str, str], ...]:
    """`fruit: apple pear` in lines as (apple, fruit), (pear, fruit)."""
    lines = (line.split(":") for line in table.strip().splitlines())
    return tuple(
        (member.replace("_", " "), kind.strip().replace("_", " "))
        for kind, members in lines
        for member in members.split()
    )


OPPOSITES = _pairs(
    "hot cold, big small, tall short, fast slow, up down, left right, day night, black white, "
    "good bad, old young, rich poor, hard soft, wet dry, open closed, full empty, happy sad, "
    "light dark, strong weak, early late, first last, clean dirty, high low, thick thin, deep "
    "shallow, wide narrow, loud quiet, love hate, war peace, life death, friend enemy, win lose, "
    "buy sell, give take, begin end, push pull, true false, right wrong, sweet bitter, brave "
    "afraid, near far, inside outside, above below, before after, always never, all none, more "
    "less, heavy weightless, sharp blunt, rough smooth, wise foolish, cheap dear, asleep awake, "
    "alive dead, guilty innocent, public private, question answer, ask reply, arrive depart, "
    "laugh weep, king beggar"
)
SYNONYMS = _pairs(
    "large huge, little tiny, glad joyful, angry furious, quick rapid, speak talk, look see, "
    "shout cry, house home, road street, sea ocean, stone rock, forest wood, ship vessel, child "
    "infant, woman lady, man gentleman, teacher master, doctor physician, gift present, money "
    "cash, evil wicked, clever bright, beautiful lovely, ill sick, tired weary, strange odd, "
    "start commence, finish complete, stop cease, help aid, find discover, hide conceal, choose "
    "select, think believe, reply respond, hurry hasten, frighten scare, silent mute, kill "
    "murder, purchase acquire, error mistake"
)
CAPITALS = _pairs(
    "France Paris, England London, Italy Rome, Spain Madrid, Germany Berlin, Russia Moscow, "
    "Greece Athens, Portugal Lisbon, Austria Vienna, Ireland Dublin, Scotland Edinburgh, Wales "
    "Cardiff, Norway Oslo, Sweden Stockholm, Denmark Copenhagen, Finland Helsinki, Poland Warsaw, "
    "Hungary Budapest, Belgium Brussels, Holland Amsterdam, Japan Tokyo, China Beijing, India "
    "Delhi, Egypt Cairo, Iraq Baghdad, Iran Tehran, Cuba Havana, Peru Lima, Chile Santiago, "
    "Canada Ottawa, Kenya Nairobi, Ghana Accra, Korea Seoul, Vietnam Hanoi, Turkey Ankara, Syria "
    "Damascus, Lebanon Beirut, Jamaica Kingston, Ecuador Quito, Senegal Dakar"
)
CONTINENTS = _groups(
    """
    Europe: France England Italy Spain Germany Greece Portugal Norway
    Asia: Japan China India Korea Vietnam Iran Syria Nepal
    Africa: Egypt Kenya Ghana Senegal Sudan Congo Morocco Nigeria
    America: Canada Peru Chile Brazil Mexico Cuba Ecuador Jamaica
    Oceania: Australia Fiji Samoa Tonga Tahiti Tuvalu Nauru Palau
    """
)
OCCUPATIONS = _pairs(
    "baker bread, butcher meat, farmer fields, fisherman nets, soldier guns, sailor ships, tailor "
    "cloth, carpenter wood, smith iron, potter clay, miner coal, shepherd sheep, gardener "
    "flowers, miller flour, banker money, judge laws, priest prayers, teacher pupils, doctor "
    "patients, writer books, painter pictures, singer songs, barber hair, cobbler shoes, mason "
    "stone, brewer beer, dentist teeth, postman letters, pilot aeroplanes, coachman horses, cook "
    "food, jeweller diamonds, dairymaid milk, glazier windows, hatter hats, tanner leather, "
    "spinner thread, actor plays, chemist medicines, astronomer stars"
)
SOUNDS = _pairs(
    "dog bark, cat mew, cow moo, sheep bleat, horse neigh, pig grunt, lion roar, wolf howl, duck "
    "quack, hen cluck, cock crow, bee buzz, snake hiss, frog croak, mouse squeak, owl hoot, dove "
    "coo, donkey bray, bird sing, turkey gobble"
)
YOUNG = _pairs(
    "cow calf, sheep lamb, horse foal, dog puppy, cat kitten, hen chick, duck duckling, lion cub, "
    "goose gosling, pig piglet, goat kid, deer fawn, frog tadpole, swan cygnet, owl owlet, eagle "
    "eaglet"
)
HOMES = _pairs(
    "bee hive, bird nest, horse stable, dog kennel, pig sty, spider web, rabbit burrow, lion den, "
    "cow barn, sheep fold, fish water, hen coop, ant hill, bear cave, man house"
)
COLOURS = _groups(
    """
    red: blood cherry rose ruby brick
    white: snow milk salt chalk swan
    black: coal raven soot ink tar
    green: grass leaf emerald frog cucumber
    yellow: lemon gold butter canary banana
    blue: sky sapphire sea bluebell cornflower
    brown: chocolate earth coffee oak sparrow
    grey: ash elephant donkey cement pigeon
    """
)
MATERIALS = _groups(
    """
    wood: table chair door barrel pencil
    iron: anvil nail chain horseshoe rail
    glass: window bottle mirror lens tumbler
    stone: castle statue pavement pyramid bridge
    wool: sock scarf blanket jersey mitten
    leather: shoe saddle belt boot purse
    paper: book letter newspaper map envelope
    gold: crown ring medal coin locket
    """
)
TOOLS = _pairs(
    "scissors cut_cloth, hammer drive_nails, needle sew_clothes, spade dig_holes, broom "
    "sweep_floors, key open_locks, pen write_letters, spoon eat_soup, cup drink_tea, clock "
    "tell_time, oar row_boats, lamp light_rooms, bed sleep, ladder climb_walls, umbrella "
    "stop_rain, comb tidy_hair, soap wash_hands, oven bake_bread, kettle boil_water, axe "
    "chop_trees, plough turn_soil, telescope watch_stars, thermometer measure_heat, ruler "
    "draw_lines, saw divide_planks, rope tie_knots, bucket carry_water, net catch_fish, brush "
    "paint_walls, drum beat_time, compass find_north, towel dry_plates, pillow rest_heads, bell "
    "call_servants, bow shoot_arrows, match light_fires"
)
KINDS = _groups(
    """
    fruit: apple pear melon grape lemon cherry plum peach banana fig
    mammal: horse cow sheep lion tiger wolf bear goat rabbit fox
    bird: eagle owl duck goose hen crow swan dove robin sparrow
    fish: trout salmon shark herring cod eel pike sole tuna perch
    flower: rose lily daisy tulip iris poppy pansy orchid primrose daffodil
    tree: oak elm pine ash birch beech willow cedar maple poplar
    metal: iron gold silver copper lead tin steel brass zinc bronze
    drink: water tea milk coffee wine beer ale cider juice cocoa
    garment: coat shirt hat shoe dress glove sock scarf cloak apron
    vehicle: cart train car wagon bicycle carriage tram lorry van sledge
    insect: ant bee fly moth wasp beetle flea gnat cricket butterfly
    instrument: violin piano flute drum harp trumpet organ guitar fiddle banjo
    """
)
PAST_TENSES = _pairs(
    "go went, see saw, come came, run ran, eat ate, give gave, take took, make made, know knew, "
    "think thought, bring brought, buy bought, teach taught, catch caught, sing sang, drink "
    "drank, swim swam, begin began, write wrote, ride rode, drive drove, speak spoke, break "
    "broke, steal stole, choose chose, fly flew, grow grew, throw threw, draw drew, blow blew, "
    "fall fell, feel felt, keep kept, sleep slept, leave left, lose lost, find found, stand "
    "stood, tell told, sell sold, say said, hear heard, hold held, win won, fight fought, forget "
    "forgot, send sent, build built, wear wore, shake shook"
)
PLURALS = _pairs(
    "man men, woman women, child children, foot feet, tooth teeth, goose geese, mouse mice, ox "
    "oxen, leaf leaves, wolf wolves, knife knives, wife wives, life lives, thief thieves, shelf "
    "shelves, loaf loaves, penny pence, lady ladies, baby babies, city cities"
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December".split()
)
ALPHABET = "a b c d e f g h i j k l m n o p q r s t u v w x y z".split()
THINGS = (
    "star bird cat dog tree ship bell rose fish book door lamp king hand moon stone leaf egg cow pig horse "
    "cup hat key ring boat cart drum coin nail shoe nest bee ant fox hen duck owl bear wolf"
).split()
