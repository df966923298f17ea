"""Word lists of the corpus: what training may name, and what is held back for the evaluation."""
from zlib import crc32

PLACES = """kitchen bedroom bathroom garage cellar attic hallway office greenhouse garden balcony terrace porch pantry
laundry nursery library studio workshop shed barn stable tower lobby corridor staircase basement loft den lounge parlor
study closet wardrobe vestibule veranda patio courtyard driveway pool sauna gym cabin cottage hut warehouse hangar depot
dock pier boathouse lighthouse mill forge foundry bakery dairy brewery winery vineyard orchard nursery meadow field pasture
paddock coop kennel aviary aquarium terrarium pond well cistern reservoir tank silo granary bunker vault archive museum
gallery theater chapel classroom laboratory clinic ward surgery pharmacy canteen cafeteria restaurant bar cafe shop store
market booth kiosk counter checkout storeroom freezer fridge oven stove boiler furnace chimney roof ceiling floor wall
fence bridge tunnel platform station hostel hotel suite dormitory barracks camp tent trailer van truck tractor boat ferry
rack server closet cabinet desk bench shelf drawer box crate container pallet conveyor press lathe kiln dryer washer
filter pump engine turbine generator inverter charger meter panel gateway router beacon mast antenna camera printer""".split()
ADJECTIVES = """north south east west upper lower front back left right inner outer main small big old new red blue green
white black yellow grey brown guest master spare second third first central side rear far near dry wet warm cold long
round square tall deep quiet bright dark wooden stone glass steel summer winter night day""".split()
OTHERS = """apple birch cedar maple oak pine willow rose tulip lily fern moss clover ivy basil mint sage thyme pepper salt
sugar honey butter lemon orange cherry plum peach melon grape berry olive tomato potato carrot onion falcon eagle robin
sparrow heron otter badger fox rabbit hare tiger lion panda koala zebra camel donkey pony dolphin whale salmon trout
spider beetle cricket comet planet saturn jupiter mars venus mercury neptune meteor galaxy rocket shuttle river lake
island ocean desert forest jungle canyon valley mountain hill glacier volcano harbor village castle palace temple
copper silver golden iron bronze marble crystal amber ruby pearl diamond velvet cotton linen silk paper pencil ribbon
button needle thread hammer anvil chisel wrench pliers ladder bucket barrel basket bottle kettle teapot saucer spoon
violin guitar piano trumpet drum banjo cello organ alpha beta gamma delta echo bravo tango sierra omega sigma zulu kilo
martin peter helen oscar julia felix nora victor emma hugo clara simon alice bruno diana edgar flora gustav""".split()
DEVICES = {  # noun: its family of states and wishes
    "switch": """light lamp fan heater radiator pump tv radio speaker kettle oven charger projector humidifier sprinkler
    boiler router camera siren printer screen monitor freezer socket plug spotlight lantern stove""".split(),
    "open": "door window gate valve curtain blind shutter hatch awning skylight garage-door roof-window".split(),
    "lock": "lock padlock safe latch deadbolt".split(),
    "run": "washer dryer dishwasher mower vacuum robot mixer conveyor compressor engine motor".split(),
}
# Held back: none of these occurs in any training text.
PLACES_HELD = """conservatory scullery gazebo pergola mezzanine foyer alcove atrium solarium crypt belfry smokehouse
outhouse quarry sawmill cowshed henhouse carport playroom boardroom darkroom cloakroom ballroom bathhouse tavern annex
gatehouse pavilion rotunda arcade mudroom larder buttery rookery apiary arboretum hayloft tannery cannery creamery""".split()
OTHERS_HELD = """juniper hazel poplar acacia magnolia lavender nutmeg saffron papaya mango walnut pelican osprey magpie
lynx bison gazelle walrus mackerel dragonfly pulsar nebula uranus lagoon tundra prairie fjord citadel cobalt topaz
granite satin pebble goblet tripod mandolin clarinet theta quebec foxtrot ingrid bernard louisa tobias""".split()
DEVICES_HELD = {"switch": "chandelier dehumidifier toaster jukebox sunlamp".split(), "open": "trapdoor sunroof porthole flap".split(),
                "lock": "bolt turnstile".split(), "run": "shredder blender juicer treadmill".split()}

ZH_PLACES = """客厅 卧室 厨房 浴室 车库 书房 阳台 花园 温室 地下室 走廊 办公室 仓库 机房 大厅 会议室 教室 餐厅 儿童房 客房 主卧
次卧 门厅 阁楼 院子 鱼池 鸡舍 马厩 果园 菜地 工厂 车间 实验室 图书馆 商店 酒窖 冷库 水塔 泵房 电梯 楼梯 屋顶 前院 后院 东屋
西屋 南楼 北楼 一楼 二楼 三楼 游泳池 健身房 洗衣房 储物间 值班室 控制室 码头 船舱 帐篷 谷仓 展厅 病房 药房 食堂 宿舍""".split()
ZH_PLACES_HELD = """茶室 琴房 画室 门廊 马棚 羊圈 花房 茶园 竹林 渔场 粮仓 油库 船坞 灯塔 温泉 桑拿房 棋牌室 衣帽间 影音室 玩具房
晒台 凉亭 牛棚 菌房 蜂场""".split()
ZH_DEVICES = {
    "switch": "灯 台灯 吊灯 壁灯 风扇 空调 暖气 热水器 电视 音箱 水泵 加湿器 投影仪 充电器 烤箱 路由器 摄像头 插座 显示器 喷头".split(),
    "open": "门 窗 窗户 窗帘 大门 阀门 卷帘 闸门 天窗".split(),
    "lock": "锁 门锁 保险箱 挂锁".split(),
    "run": "洗衣机 烘干机 洗碗机 割草机 扫地机 搅拌机 传送带 电机".split(),
}
ZH_DEVICES_HELD = {"switch": "射灯 吸顶灯 除湿器 排风扇".split(), "open": "铁门 侧窗 纱窗".split(), "lock": "密码锁".split(), "run": "粉碎机 压缩机".split()}
# Every character that a Chinese name may be put together from; each is a token of its own.
ZH_CHARS = sorted(set("""一二三四五六七八九十东南西北上中下左右前后内外大小高低长短新旧红黄蓝绿白黑灰紫金银铜铁木石竹水火土山川
江河湖海岛林森花草树叶果瓜豆米麦茶酒油盐糖春夏秋冬日月星云风雨雪雷电光明亮暗冷热温凉干湿天地人家国城乡村镇街路桥门窗房屋楼台亭
阁室厅堂院园库仓场厂店馆站所塔井池泉沟渠坝田牛羊马猪鸡鸭鹅鱼虾龟鹤鹰虎龙凤狮象猫狗兔鼠蜂蝶车船机舱轮泵阀管线箱柜桌椅床灯
扇炉锅碗壶杯瓶琴棋书画笔纸墨布丝衣帽鞋宝玉珠晶安平和静康乐福喜庆吉祥如意文武学校医药工农商军民公子王李张刘陈杨赵周吴徐孙朱
胡郭何林罗郑梁宋唐许韩冯邓曹彭曾肖田董袁潘蒋蔡余杜叶程苏魏吕丁沈任姚卢姜崔钟谭陆汪范石廖贾韦付方白邹孟熊秦邱江尹薛闫段雷
侯龙史陶黎贺顾毛郝龚邵万钱严覃洪武戴莫孔向汤客餐厨浴卧厕走廊办室议教会实验图书控制值班洗储物间游泳健身展病宿舍食谷船码头帐篷
主次儿童阳地下车库温果菜鸡舍酒窖冷梯顶前屋楼号层区组台吊壁空调暖气热器电视音加投影仪充烤路由摄像插座显示喷户帘卷闸锁保险挂
烘碗割草扫搅拌传送带除排侧纱密码粉碎压缩射吸铁廊棚圈竹渔粮坞桑拿牌帽影玩具晒凉菌""".replace("\n", "").replace(" ", "")
    + "".join(ZH_PLACES + ZH_PLACES_HELD) + "".join(w for d in (ZH_DEVICES, ZH_DEVICES_HELD) for v in d.values() for w in v)))

PLACES = sorted(set(PLACES))
WORDS = sorted(set(PLACES + OTHERS))


def value_held(text):
    """Whether a value such as 21.5 is kept out of training (about one in eight)."""
    return crc32(text.encode()) % 8 == 0


def name_held(text):
    """Whether a made-up name is kept out of training (one in sixteen), so that the evaluation can use its like."""
    return crc32(("name " + text).encode()) % 16 == 0
