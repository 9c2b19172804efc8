#!lua
-- Gives a group of products its limit per user, which all its products have; a group that has another limit keeps that one. There
-- is no event, because a rebuild takes the groups from the products.
--
-- KEYS 1 meta    hash  partition state
--      2 groups  hash  group -> its limit per user (units)
-- ARGV 1 group  2 limit per user (units)
-- Returns GROUP_SET | UNCHANGED | OTHER_LIMIT | PARTITION_CLOSED
--@include partition
local meta, groups = KEYS[1], KEYS[2]
local group, limit = ARGV[1], ARGV[2]

if not begin_decision(meta) then return { 'PARTITION_CLOSED' } end
local had = redis.call('HGET', groups, group)
if had == limit then return { 'UNCHANGED' } end
if had then return { 'OTHER_LIMIT' } end
---- checks above, writes below -------------------------------------------------------------------------------------
redis.call('HSET', groups, group, limit)
return { 'GROUP_SET' }
